"""Learning from answers that the model tries itself: group relative policy optimisation.

Several answers are drawn for each question, a check says which pass, and an answer is made likelier or
less likely by how it compares with the others of its question (Shao et al., 2024). Every group is used
for one step only, so there is no ratio to clip, and no second model.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy
import torch

from core.config import RunConfig
from core.data.xray import IGNORED
from core.evaluation.checks import check_of
from core.evaluation.generate import sampled
from core.training.packing import Pack, Packer, Step, pack, split
from core.training.prepare import Prepared, Question
from core.training.trainer import Trainer

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
    """A Trainer whose answers are its own. Its held-out loss is the share of answers that fail."""

    def __init__(self, *, config: RunConfig, prepared: Prepared, packer: Packer, **kwargs: Any) -> None:
        self.method, self.evaluation = config.method, config.evaluation
        self.questions, self.held_questions = prepared.questions, prepared.held_questions
        self.check = check_of(config.method)
        numbers = Numbers(packer.limit, packer.multiple)
        super().__init__(packer=numbers, held_out=prepared.held_out, **kwargs)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One optimizer step: answers are drawn, checked and compared."""
        asked = [self.questions[number] for number in inputs["numbers"] for _ in range(self.method.answers)]
        replies = self._replies(asked, self.method.temperature)
        rewards = self._rewards(asked, replies)
        compared = advantages(rewards.reshape(-1, self.method.answers)).reshape(-1)
        prompts = [prompt for prompt, _ in asked]
        loss = self.learn(model, prompts, replies, compared)
        self.mask_gradients()
        self.extra = {
            "reward": torch.tensor(rewards.mean(), device=loss.device),
            "answer_tokens": torch.tensor(numpy.mean([len(reply) for reply in replies]), device=loss.device),
        }
        return loss

    def learn(
        self, model: Any, prompts: list[list[int]], replies: list[list[int]], compared: Any
    ) -> torch.Tensor:
        """Gradients of the mean over all tokens of -advantage * log-probability."""
        total, factor = sum(len(reply) for reply in replies), self._loss_scale()
        # An answer no better and no worse than the others of its question teaches nothing.
        kept = [number for number in range(len(replies)) if compared[number]]
        step = self._begun(model, {"step": self._packed(prompts, replies, kept)})
        loss = torch.zeros((), device=self.args.device)
        for one, numbers in zip(step.packs, step.rows, strict=True):
            of_rows = numpy.zeros(len(one.lengths), numpy.float32)
            of_rows[: len(numbers)] = compared[list(numbers)]
            values = torch.from_numpy(of_rows).to(one.learned.device)
            place = torch.bucketize(one.learned, one.boundaries[1:].long(), right=True)
            weights = values[place] / total
            loss += self.engine.step(one, partial(_weighed, weights, factor))
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

    def _replies(self, asked: list[Question], temperature: float | None) -> list[list[int]]:
        """Answers, in the order of their questions; prompts of like length are answered together."""
        order = sorted(range(len(asked)), key=lambda number: len(asked[number][0]))
        replies: list[list[int]] = [[] for _ in asked]
        size = self.evaluation.batch * (self.method.answers if temperature else 1)
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(order), size):
                self.job.check_stop()
                some = order[start : start + size]
                found = sampled(
                    self.model,
                    self.processing_class,
                    [asked[number][0] for number in some],
                    self.evaluation.max_new_tokens,
                    temperature,
                )
                for number, reply in zip(some, found, strict=True):
                    replies[number] = reply
        finally:
            self.model.train(was_training)
        return replies

    def _rewards(self, asked: list[Question], replies: list[list[int]]) -> Any:
        texts = self.processing_class.batch_decode(replies, skip_special_tokens=True)
        return numpy.array(
            [self.check(text.strip(), answer) for text, (_, answer) in zip(texts, asked, strict=True)]
        )

    def _held_out_metrics(self, prefix: str) -> dict[str, float]:
        replies = self._replies(self.held_questions, None)
        passed = float(self._rewards(self.held_questions, replies).mean())
        return {f"{prefix}_loss": 1 - passed, f"{prefix}_reward": passed}
