"""A forecast that costs nothing, in the place of the real one: the page, the queue and the command line
are tried with figures that a test chooses."""

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from plumbline.models.hardware import Choice


@dataclass(frozen=True)
class Plan:
    micro_batch_tokens: int = 4096
    layers_without_recompute: int = 8
    layers: int = 8
    offload: bool = False
    optimizer: str = "adamw_torch"
    processes: int = 1
    choices: dict[str, Choice] = field(
        default_factory=lambda: {"micro-batch": Choice("4,096 tokens", "they fit with <all> activations")}
    )


@dataclass(frozen=True)
class Forecast:
    peak_gib: float = 3.2
    free_gib: float = 15.1
    seconds_per_step: float = 1.3
    total_seconds: float = 720.0
    disk_gib: float = 0.04
    cost: float | None = None
    probed: bool = False
    plan: Plan = field(default_factory=Plan)
    problem: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Forecast":
        raw = json.loads(text)
        plan = raw.pop("plan")
        choices = {name: Choice(*choice) for name, choice in plan.pop("choices").items()}
        return cls(**raw, plan=Plan(**plan, choices=choices))


class Fake:
    """What the fake forecast says, what it was asked, and what its measurement does."""

    def __init__(self) -> None:
        self.says: Forecast | Exception = Forecast()
        self.asked: list[tuple[Any, int, Any, int]] = []
        self.measures: Callable[[Any, Any], Forecast] = lambda config, job: dataclasses.replace(
            Forecast(), probed=True, peak_gib=3.5, total_seconds=900.0
        )

    def forecast(
        self, config: Any, chosen_rows: int, lengths: Any, supervised: int, held_out: int
    ) -> Forecast:
        self.asked.append((config, chosen_rows, lengths, supervised))
        if isinstance(self.says, Exception):
            raise self.says
        price = config.training.price_per_hour
        cost = None if price is None else price * self.says.total_seconds / 3600
        return dataclasses.replace(self.says, cost=cost)

    def say(self, **changes: Any) -> None:
        self.says = dataclasses.replace(Forecast(), **changes)


def installed(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    for name, parts in {
        "plumbline.planner.forecast": {"Forecast": Forecast, "forecast": fake.forecast},
        "plumbline.planner.probe": {"measure": lambda config, job: fake.measures(config, job)},
    }.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    return fake
