"""Learning from judgements: DPO, ORPO and KTO on packs, through the same engines as everything else.

Their losses are functions of each answer's log-probability. The derivative of such a loss by a token's
log-probability is a weight for that token's cross entropy, so an engine that takes a weight a token
computes all of them, without padding and without a second copy of the model.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
import torch
from torch.nn.functional import logsigmoid

from plumbline.batches.packing import Pack, Packer
from plumbline.batches.pair_packing import Judged, JudgedStep, lengths_of
from plumbline.batches.prepare import Prepared
from plumbline.config.method import MethodSection
from plumbline.data.tokens.encode import Encoded
from plumbline.distributed.process_group import current
from plumbline.engine.chunked_loss import Weigh
from plumbline.errors import StudioError
from plumbline.evaluation.preference import accuracy
from plumbline.models.out_of_memory import OomBackoff
from plumbline.training.loop.pace import EVALUATION
from plumbline.training.loop.trainer import Trainer

REFERENCE = "reference.npz"
T = TypeVar("T")


@dataclass(frozen=True)
class Scale:
    """What a step's sums are divided by: its pairs (or rows), and the tokens of its better answers.

    :param drift: KTO's estimate of how far the policy is from the reference, in nats, at least 0
    """

    pairs: int
    tokens: int
    drift: Any = 0.0


def row_log_probabilities(losses: torch.Tensor, held: Pack) -> torch.Tensor:
    """The summed log-probability of each row's learned tokens, (rows,).

    :param losses: the negative log-likelihood of each learned token
    """
    place = torch.bucketize(held.learned, held.boundaries[1:].long(), right=True)
    return losses.new_zeros(len(held.lengths)).index_add(0, place, -losses)


def dpo(chosen: Any, rejected: Any, references: Any, beta: float) -> tuple[Any, Any]:
    """Direct preference optimisation (Rafailov et al., 2023).

    :param references: (pairs, 2), the reference's log-probabilities of both answers
    :returns: loss and reward margin of each pair
    """
    margin = beta * ((chosen - references[:, 0]) - (rejected - references[:, 1]))
    return -logsigmoid(margin), margin


def log_of_rest(chosen: Any) -> Any:
    """log(1 - exp(x)) for log-probabilities x, as exact near 0 as far below it (Mächler, 2012).

    A probability that is rounded to 1 counts as the nearest one below, so that value and slope are finite.
    """
    certain = chosen.clamp(max=-torch.finfo(chosen.dtype).eps / 2)
    held = chosen + (certain - chosen).detach()  # a clamp's own slope would be 0 there
    near = held > -math.log(2)
    # Each branch gets a number that suits it: the slope of the other one would be NaN times 0.
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, held, -1.0))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, held))),
    )


def orpo(chosen: Any, rejected: Any, beta: float) -> tuple[Any, Any]:
    """The odds ratio term (Hong et al., 2024), from mean log-probabilities a token.

    :returns: loss and reward margin of each pair
    """
    odds = (chosen - rejected) - (log_of_rest(chosen) - log_of_rest(rejected))
    return -beta * logsigmoid(odds), beta * (chosen - rejected)


def kto(answers: Any, references: Any, good: Any, method: MethodSection, drift: Any) -> tuple[Any, Any]:
    """Kahneman-Tversky optimisation (Ethayarajh et al., 2024).

    :param good: (rows,), whether the answer is desirable
    :returns: loss of each row; its reward, negative where the answer is not desirable
    """
    ratio = answers - references
    gained = torch.where(good, ratio - drift, drift - ratio)
    weight = torch.where(good, method.desirable_weight, method.undesirable_weight)
    return weight * (1 - torch.sigmoid(method.beta * gained)), torch.where(good, 1, -1) * method.beta * ratio


def _stored(file: Path) -> dict[str, Any]:
    """What was measured before; empty when there is nothing."""
    if not file.exists():
        return {}
    with numpy.load(file) as stored:
        return dict(stored)


class PreferenceTrainer(Trainer):
    """A Trainer whose rows are judged answers. Its held-out loss is the method's own."""

    def __init__(self, *, method: MethodSection, prepared: Prepared, packer: Packer, **kwargs: Any) -> None:
        self.method = method
        paired = method.name in ("dpo", "orpo")
        rows = Judged(packer, prepared.train, prepared.others, paired)
        held = Judged(packer, prepared.held_out, prepared.held_others, paired)
        self.parts = {"train": rows, "held_out": held}
        self.good = {"train": prepared.good, "held_out": prepared.held_good}
        self.references: dict[str, Any] = {}
        super().__init__(packer=rows, held_out=prepared.held_out, **kwargs)
        self.at_once = OomBackoff(packer.limit, "tokens", self.job.event, current().any, not packer.even)

    def measure_references(self) -> None:
        """What the model that nothing was learned yet by gives to every answer; kept beside the run.

        :raises StudioError: when it has learned already, and what was measured before is lost
        """
        if self.references or self.method.name == "orpo":
            return
        file = Path(str(self.args.output_dir)).parent / REFERENCE
        # Only the first process knows whether it goes on, and has what was kept.
        kept = _stored(file) if current().first and self.job.payload.get("resume") else {}
        self.references = current().broadcast(kept)
        if self.references:
            return
        if self.state.global_step:
            raise StudioError(file.name, "is missing", "It cannot be measured again: start the run anew.")
        self.job.report("measuring the reference on every answer")
        for name, part in self.parts.items():
            self.references[name] = self._reference(part)
        if current().first:
            staged = file.with_suffix(".new.npz")
            numpy.savez(staged, **self.references)
            os.replace(staged, file)

    def measure_base(self) -> None:
        with self._at(EVALUATION):
            # Before the adapter is taken out: a run is held against what it began as.
            self.measure_references()
        super().measure_base()

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One optimizer step: gradients of the method's mean loss over its pairs or rows."""
        self.measure_references()
        step = self._begun(model, inputs)
        assert isinstance(step, JudgedStep)
        scale, factor = self._scale("train", step.numbers), self._loss_scale()
        margins: list[torch.Tensor] = []

        def weigh(held: Pack, unit: Sequence[int]) -> Weigh:
            def by_token(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                leaf = losses.detach().requires_grad_()
                with torch.enable_grad():
                    each, margin = self._judge("train", leaf, held, unit, scale)
                    total = each.sum() / scale.pairs
                (weights,) = torch.autograd.grad(total, leaf)
                margins.append(margin.detach())
                return total.detach(), weights * factor

            return by_token

        losses = [
            self.engine.step(one, weigh(one, unit) if unit else 0.0)
            for one, unit in zip(step.packs, step.rows, strict=True)
        ]
        loss = torch.stack(losses).sum() if losses else torch.zeros((), device=self.args.device)
        if current().size > 1:
            current().sum_all(self.engine.gradients())
            current().sum(loss)
        self.mask_gradients()
        self.extra = self._rewards(step.joined(margins, self.args.device))
        return loss

    def _judge(
        self, part: str, losses: torch.Tensor, held: Pack, unit: Sequence[int], scale: Scale
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and reward margin of each of a pack's pairs or rows."""
        sums = row_log_probabilities(losses, held)
        count = len(unit)
        known = None
        if self.references:
            known = torch.from_numpy(self.references[part][list(unit)]).to(sums.device)
        if self.method.name == "kto":
            good = torch.tensor([self.good[part][number] for number in unit], device=sums.device)
            assert known is not None
            return kto(sums[:count], known[:, 0], good, self.method, scale.drift)
        chosen, rejected = sums[: 2 * count : 2], sums[1 : 2 * count : 2]
        if self.method.name == "dpo":
            return dpo(chosen, rejected, known, self.method.beta)
        rows = self.parts[part]
        lengths = [[side[number].supervised for side in (rows.rows, rows.others)] for number in unit]
        tokens = torch.tensor(lengths, device=sums.device)
        odds, margin = orpo(chosen / tokens[:, 0], rejected / tokens[:, 1], self.method.beta)
        return odds - chosen * (scale.pairs / scale.tokens), margin

    def _scale(self, name: str, numbers: Sequence[int]) -> Scale:
        part = self.parts[name]
        tokens = sum(part.rows[number].supervised for number in numbers)
        drift: Any = 0.0
        if self.method.name == "kto":
            step, found = self._of_packs(part, numbers, [part.others], 1, self._of_rows)
            sums = step.joined(found, self.args.device)
            known = torch.from_numpy(self.references[name][list(step.numbers), 1]).to(sums.device)
            drift = (sums - known).mean().clamp(min=0)
        return Scale(len(numbers), tokens, drift)

    def _of_rows(self, held: Pack, unit: Sequence[int]) -> torch.Tensor:
        return row_log_probabilities(self.engine.losses(held), held)[: len(unit)]

    def _of_packs(
        self,
        part: Judged,
        numbers: Sequence[int],
        sides: list[list[Encoded]],
        multiple: int,
        find: Callable[[Pack, Sequence[int]], T],
    ) -> tuple[JudgedStep, list[T]]:
        """What is found in each pack of some rows, in smaller packs when memory runs out."""

        def within(limit: int) -> tuple[JudgedStep, list[T]]:
            step, found = part.shared(numbers, sides, limit, multiple), []
            for one, unit in zip(step.packs, step.rows, strict=True):
                self.check_stop()
                found.append(find(one.to(self.args.device), unit))
            return step, found

        lengths = lengths_of(numbers, sides)
        return self.at_once.run(f"judging answers {self.where}", within, max(lengths), sum(lengths))

    def _reference(self, part: Judged) -> Any:
        """Log-probabilities of both answers of every row, (rows, 2)."""
        every = range(len(part.rows))
        found = numpy.zeros((len(part.rows), 2), numpy.float32)
        for column, side in enumerate((part.rows, part.others)):
            step, sums = self._of_packs(part, every, [side], 1, self._of_rows)
            found[list(step.numbers), column] = step.joined(sums, self.args.device).cpu().numpy()
        return found

    def _rewards(self, margin: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"rewards/margin": margin.mean(), "rewards/accuracy": accuracy(margin)}

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        self.measure_references()
        part = self.parts["held_out"]
        every = range(len(part.rows))
        scale = self._scale("held_out", every)

        def judged(held: Pack, unit: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
            losses = self.engine.losses(held)
            return self._judge("held_out", losses, held, unit, scale) if unit else (losses, losses)

        step, found = self._of_packs(part, every, part.sides, part.multiple, judged)
        each = numpy.zeros((len(part.rows), 2))
        for column in (0, 1):
            values = step.joined([both[column] for both in found], self.args.device)
            each[list(step.numbers), column] = values.cpu().numpy()
        metrics = {f"{prefix}_loss": float(each[:, 0].mean())}
        by_source: dict[str, list[float]] = {}
        for source, loss in zip(self.sources, each[:, 0], strict=True):
            by_source.setdefault(source, []).append(float(loss))
        if len(by_source) > 1:
            metrics |= {f"{prefix}_loss/{name}": sum(some) / len(some) for name, some in by_source.items()}
        margins = torch.from_numpy(each[:, 1])
        return metrics | {f"{prefix}_{name}": float(value) for name, value in self._rewards(margins).items()}
