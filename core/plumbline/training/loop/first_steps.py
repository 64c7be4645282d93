"""What is written down where only the losses of a run's first steps are looked at: nothing but these."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from plumbline.training.loop.pace import StepClock


class FirstSteps(TrainerCallback):
    """Takes the place of a `Record`, and ends the training after some steps.

    :param told: called with each step that was made; may raise to end it
    :ivar losses: of each step, in nats
    """

    def __init__(self, steps: int, told: Callable[[int], None]) -> None:
        self.steps, self.told = steps, told
        self.losses: list[float] = []
        self.clock: StepClock

    def step_done(self, step: int, tokens: int, seconds: float) -> None:
        """Nothing is timed."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told(state.global_step)
        if state.global_step >= self.steps:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False
