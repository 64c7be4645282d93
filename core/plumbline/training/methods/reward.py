"""Learning from answers that the model tries itself: group relative policy optimisation.

Several answers are drawn for each question, a check says which pass, and an answer is made likelier or
less likely by how it compares with the others of its question (Shao et al., 2024). Every group is used
for one step only, so there is no ratio to clip, and no second model.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy
import torch

from plumbline.batches.packing import Pack, Packer, Step, pack, split
from plumbline.batches.prepare import Prepared, Question
from plumbline.config.schema import RunConfig
from plumbline.data.tokens.encode import IGNORED
from plumbline.distributed.process_group import current
from plumbline.errors import StudioError
from plumbline.evaluation.checks import check_of
from plumbline.evaluation.generate import Draw, sampled
from plumbline.models.out_of_memory import OomBackoff
from plumbline.training.loop.trainer import Trainer

TEACHES = "a question teaches something where some of its answers pass and others do not"
EPSILON = 1e-4  # beside a group's standard deviation


def advantages(rewards: Any) -> Any:
    """How much better each answer is than its question's others, in their standard deviations.

    :param rewards: (questions, answers)
    """
    spread = rewards.std(axis=1, ddof=1, keepdims=True)
    return (rewards - rewards.mean(axis=1, keepdims=True)) / (spread + EPSILON)


def _weighed(weights: torch.Tensor, factor: float, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return -weights.sum(), weights * factor


class Numbers(Packer):
    """Leaves a step's rows as numbers: what is packed is not known before it is answered."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"numbers": [int(row["number"]) for row in rows]}


class RewardTrainer(Trainer):
    """A Trainer whose answers are its own. Its held-out loss is the share of answers that fail.

    :raises StudioError: when the base is spread over several processes
    """

    def __init__(self, *, config: RunConfig, prepared: Prepared, packer: Packer, **kwargs: Any) -> None:
        if packer.even:  # transformers answers, which knows nothing of weights that are gathered
            raise StudioError("machines.sharding", "is not for answers that are tried", "Set it to none.")
        self.method, self.evaluation = config.method, config.evaluation
        self.questions, self.held_questions = prepared.questions, prepared.held_questions
        self.check = check_of(config.method)
        numbers = Numbers(packer.limit, packer.multiple)
        super().__init__(packer=numbers, held_out=prepared.held_out, **kwargs)
        batch = self.evaluation.batch
        self.at_once = OomBackoff(batch * self.method.answers, "answers", self.job.event)
        self.held_at_once = OomBackoff(batch, "answers", self.job.event)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One optimizer step: answers are drawn, checked and compared."""
        answers = self.method.answers
        mine = self._share(self.questions, inputs["numbers"])
        asked = [self.questions[number] for number in mine for _ in range(answers)]
        replies = self._replies(asked, self._draw(mine))
        rewards = self._rewards(asked, replies)
        compared = advantages(rewards.reshape(len(mine), answers)).flatten()
        prompts = [prompt for prompt, _ in asked]
        loss = self.learn(model, prompts, replies, compared)
        self.mask_gradients()
        sums = torch.tensor([rewards.sum(), sum(map(len, replies))], dtype=torch.float64)
        means = current().sum(sums) / (len(inputs["numbers"]) * answers)
        self.extra = dict(zip(("reward", "answer_tokens"), means.to(loss.device), strict=True))
        return loss

    def _draw(self, numbers: Sequence[int]) -> Draw:
        """A question's answers are drawn with numbers that its own number and the step make.

        So they are the same whatever is answered beside it, and whichever process answers it.
        """
        seeds = [(self.args.seed, self.state.global_step, number) for number in numbers]
        shape = self.method.answers, self.evaluation.max_new_tokens
        drawn = [numpy.random.default_rng(seed).random(shape) for seed in seeds]
        return Draw(self.method.temperature, numpy.concatenate([numpy.zeros((0, shape[1])), *drawn]))

    def learn(
        self, model: Any, prompts: list[list[int]], replies: list[list[int]], compared: Any
    ) -> torch.Tensor:
        """Gradients of the mean over all tokens of -advantage * log-probability, and that mean.

        :param replies: of this process; the mean is over those of all
        :param compared: the advantage of each
        """
        # An answer no better and no worse than the others of its question teaches nothing.
        kept = [number for number in range(len(replies)) if compared[number]]
        mine = self._packed(prompts, replies, kept)
        total, tokens, supervised = _sums(sum(map(len, replies)), mine.tokens, mine.supervised)
        whole = replace(mine, tokens=int(tokens), supervised=int(supervised))
        step, factor = self._begun(model, {"step": whole}), self._loss_scale()
        loss = torch.zeros((), device=self.args.device)
        for one, numbers in zip(step.packs, step.rows, strict=True):
            of_rows = numpy.zeros(len(one.lengths), numpy.float32)
            of_rows[: len(numbers)] = compared[list(numbers)]
            values = torch.from_numpy(of_rows).to(one.learned.device)
            place = torch.bucketize(one.learned, one.boundaries[1:].long(), right=True)
            weights = values[place] / total
            loss += self.engine.step(one, partial(_weighed, weights, factor))
        # Where no process learned anything there is no gradient, and the optimizer is to see none.
        if current().size > 1 and step.tokens:
            current().sum_all(self.engine.gradients())
            current().sum(loss)
        return loss

    def _packed(self, prompts: list[list[int]], replies: list[list[int]], kept: list[int]) -> Step:
        lines = {
            number: {
                "input_ids": prompts[number] + replies[number],
                "labels": [IGNORED] * len(prompts[number]) + replies[number],
            }
            for number in kept
        }
        lengths = [len(lines[number]["input_ids"]) for number in kept]
        multiple, limit = self.packer.multiple, self.packer.limit
        packs: list[Pack] = []
        rows = []
        for bin_ in split(lengths, limit, full=multiple > 1) if kept else []:
            rows.append(tuple(kept[place] for place in bin_))
            packs.append(pack([lines[number] for number in rows[-1]], multiple, limit))
        return Step(tuple(packs), sum(lengths), sum(len(one.targets) for one in packs), tuple(rows))

    def _share(self, questions: list[Question], numbers: Sequence[int]) -> list[int]:
        """Of these questions, the ones that this process answers."""
        shares = current().shares([len(questions[number][0]) for number in numbers])
        return [numbers[place] for place in shares[current().rank]]

    def _replies(self, asked: list[Question], draw: Draw | None) -> list[list[int]]:
        """Answers, in the order of their questions; prompts of like length are answered together."""
        was_training = self.model.training
        self.model.eval()
        try:
            return sampled(
                self.model,
                self.processing_class,
                [prompt for prompt, _ in asked],
                self.evaluation.max_new_tokens,
                self.at_once if draw else self.held_at_once,
                f"trying answers {self.where}",
                draw,
                lambda done: self.job.check_stop(),
            )
        finally:
            self.model.train(was_training)

    def _rewards(self, asked: list[Question], replies: list[list[int]]) -> Any:
        # Of no replies transformers would make one empty text.
        texts = self.processing_class.batch_decode(replies, skip_special_tokens=True) if replies else []
        return numpy.array(
            [self.check(text.strip(), answer) for text, (_, answer) in zip(texts, asked, strict=True)]
        )

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        count = len(self.held_questions)
        asked = [self.held_questions[number] for number in self._share(self.held_questions, range(count))]
        (passed,) = _sums(self._rewards(asked, self._replies(asked, None)).sum())
        if not self.state.global_step and passed in (0, count):
            which = f"none of the {count}" if not passed else f"all of the {count}"
            told = f"{which} held-out answers pass the check before training; {TEACHES}"
            self.job.event(told, "warning")
        return {f"{prefix}_loss": 1 - passed / count, f"{prefix}_reward": passed / count}


def _sums(*values: float) -> list[float]:
    """Each summed over all processes."""
    return current().sum(torch.tensor(values, dtype=torch.float64)).tolist()
