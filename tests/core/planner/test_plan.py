"""The planner: what it may choose, that it fits, that it is the fastest that does, and what it says."""

import random
import re
from pathlib import Path
from typing import Any

import numpy
import pytest

from plumbline.batches.packing import Packer
from plumbline.batches.prepare import prepare
from plumbline.config.schema import RunConfig, validated
from plumbline.engine.plan import Plan
from plumbline.errors import StudioError
from plumbline.models.hardware import GIB
from plumbline.planner import plan
from plumbline.planner.cost import DeviceSpeed
from plumbline.planner.model_size import ModelSize
from plumbline.planner.plan import Outcome, Workload, choose, estimate, packed, smallest, workload, worst_pack
from tests import tiny
from tests.runs import add, do, recipe

GPU, CPU = DeviceSpeed(7e14, 4e12, 6e-6, True), DeviceSpeed(1e11, 1e10, 1e-6, False)
# Llama 3.2 3B in NF4 with double quantisation, r 16 on every linear layer.
LAYERS, HIDDEN, WIDE = 28, 3072, 8192
LINEAR = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * 1024 + 3 * HIDDEN * WIDE)
ADAPTER = LAYERS * 16 * (4 * HIDDEN + 2 * (HIDDEN + 1024) + 3 * (HIDDEN + WIDE))
SHAPE = ModelSize(
    layers=LAYERS,
    hidden=HIDDEN,
    intermediate=WIDE,
    query_heads=24,
    key_heads=8,
    head_dim=128,
    head_norms=False,
    vocabulary=128256,
    linear_weights=LINEAR,
    adapter_parameters=ADAPTER,
    base_bytes=int(LINEAR * 0.516) + 2 * 128256 * HIDDEN,
    number_bytes=2,
    refusal="",
)
LENGTHS = numpy.random.default_rng(1).integers(40, 900, 500)
AMPLE = 500 * GIB


def config(**training: Any) -> RunConfig:
    return validated({"training": {"effective_batch": 16, **training}})


def chosen(
    free: float, shape: ModelSize = SHAPE, rates: DeviceSpeed = GPU, lengths: Any = LENGTHS, **training: Any
) -> Any:
    asked = config(**training)
    return choose(asked, shape, load(asked, lengths), rates, free)


def load(asked: RunConfig, lengths: Any = LENGTHS) -> Workload:
    return workload(asked, lengths, int(0.5 * sum(lengths)))


def fits(free: float, **given: Any) -> bool:
    try:
        chosen(free, **given)
    except StudioError:
        return False
    return True


def least(**training: Any) -> float:
    """The least free memory that a plan is found for."""
    asked = config(**training)
    return smallest(asked, SHAPE, load(asked), GPU).peak_bytes / plan.USED_SHARE


@pytest.mark.parametrize("tokens", [600, 3000, 50_000])
def test_pinned_tokens_are_taken(tokens: int) -> None:
    found = chosen(AMPLE, micro_batch_tokens=tokens).plan
    # A row is never cut in two: packs hold at least the longest.
    assert found.micro_batch_tokens == max(tokens, int(LENGTHS.max()))
    assert "set in the recipe" in found.choices["micro-batch"].why


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.parametrize("rates", [GPU, CPU], ids=["gpu", "cpu"])
def test_a_pinned_optimizer_is_taken(optimizer: str, rates: DeviceSpeed) -> None:
    found = chosen(AMPLE, rates=rates, optimizer=optimizer).plan
    assert found.optimizer == (optimizer if rates.cuda else optimizer.removeprefix("paged_"))
    why = found.choices["optimizer"]
    # This machine has no CUDA: paged memory is refused with a reason, the others are as they were set.
    if optimizer.startswith("paged"):
        assert why.value == "adamw_8bit" and "paged memory needs CUDA" in why.why
    else:
        assert why == (optimizer, "set in the recipe")


@pytest.mark.parametrize(
    ("wanted", "kept", "offload"),
    [("none", {LAYERS}, False), ("full", {0}, False), ("offload", {0}, True), ("selective", None, False)],
)
def test_pinned_checkpointing_is_taken(wanted: str, kept: set[int] | None, offload: bool) -> None:
    found = chosen(AMPLE, gradient_checkpointing=wanted).plan
    assert found.layers_without_recompute in (kept or range(1, LAYERS)) and found.offload == offload
    assert found.choices["checkpointing"] == (wanted, "set in the recipe")
    assert found.layers == LAYERS


def test_the_fastest_of_all_that_fit_is_chosen() -> None:
    for free in (4 * GIB, 12 * GIB, AMPLE):
        mine = chosen(free)
        slower = 0
        for tokens in (2048, 8192, 32768):
            for checkpointing in ("none", "selective", "full", "offload"):
                for optimizer in ("adamw_torch", "adamw_8bit"):
                    pins = {
                        "micro_batch_tokens": tokens,
                        "gradient_checkpointing": checkpointing,
                        "optimizer": optimizer,
                    }
                    if not fits(free, **pins):
                        continue
                    other = chosen(free, **pins)
                    assert mine.step_seconds <= plan.NEAR * other.step_seconds
                    slower += other.step_seconds > plan.NEAR * mine.step_seconds
                    if other.step_seconds <= mine.step_seconds:
                        assert mine.peak_bytes <= other.peak_bytes
        assert slower > 0


SLOW = DeviceSpeed(2e13, 4e12, 6e-6, True)


def test_of_plans_as_fast_the_one_that_needs_least_is_chosen() -> None:
    pins = {"gradient_checkpointing": "none", "optimizer": "adamw_torch"}
    mine = chosen(AMPLE, rates=SLOW, **pins)
    whole = chosen(AMPLE, rates=SLOW, micro_batch_tokens=65536, **pins)
    assert whole.step_seconds < mine.step_seconds <= plan.NEAR * whole.step_seconds
    assert mine.peak_bytes < 0.8 * whole.peak_bytes


def test_states_stay_whole_where_there_is_room() -> None:
    """Other settings change speed and memory only; rounded states change what is learned."""
    assert chosen(AMPLE, rates=SLOW, effective_batch=64).plan.optimizer == "adamw_torch"


def test_less_memory_means_less_kept_and_never_more_than_there_is() -> None:
    found: list[Outcome] = []
    bottom = 1.0001 * least()
    for free in numpy.geomspace(60 * GIB, bottom, 25):
        one = chosen(float(free))
        assert one.peak_bytes <= plan.USED_SHARE * free
        found.append(one)
    seconds = [one.step_seconds for one in found]
    assert all(later >= earlier / plan.NEAR for earlier, later in zip(seconds, seconds[1:], strict=False))
    assert seconds[-1] > 1.2 * seconds[0]
    first, last = found[0].plan, found[-1].plan
    assert first.layers_without_recompute == LAYERS and first.optimizer == "adamw_torch" and not first.offload
    assert last.layers_without_recompute == 0 and last.optimizer == "adamw_8bit" and last.offload
    assert last.micro_batch_tokens < first.micro_batch_tokens
    ways = [one.plan.choices["checkpointing"].value for one in found]
    assert {"none", "selective", "offload"} <= set(ways)
    assert ways.index("none") < ways.index("selective") < ways.index("offload")


def test_nothing_is_found_below_the_least_and_something_above() -> None:
    bottom = least()
    assert fits(1.0001 * bottom) and not fits(0.999 * bottom)
    with pytest.raises(StudioError):
        chosen(0.999 * bottom)


ADVICE = re.compile(r"micro_batch_tokens (\d+), gradient_checkpointing (\w+), optimizer (\w+)")
SHORTER = re.compile(r"With max_length (\d+) it needs ([\d.]+) GiB")


def test_settings_that_cannot_fit_are_told_the_nearest_that_do_and_those_do() -> None:
    pins = {"micro_batch_tokens": 32768, "gradient_checkpointing": "none", "optimizer": "adamw_torch"}
    free = 8 * GIB
    with pytest.raises(StudioError) as told:
        chosen(free, **pins)
    text = told.value.text
    needed = smallest(config(**pins), SHAPE, load(config(**pins)), GPU).peak_bytes
    assert told.value.where == "memory"
    assert f"{needed / GIB:.1f} GiB is the least for these settings, 7.4 GiB can be used" in text
    advice = ADVICE.search(text)
    assert advice is not None and "leave all three to the planner" in text
    tokens, checkpointing, optimizer = advice.groups()
    followed = chosen(
        free, micro_batch_tokens=int(tokens), gradient_checkpointing=checkpointing, optimizer=optimizer
    )
    assert followed.peak_bytes <= plan.USED_SHARE * free
    said = re.search(r"([\d.]+) GiB is enough", text)
    assert said is not None and followed.peak_bytes / GIB == pytest.approx(float(said[1]), abs=0.051)
    assert fits(free)


def test_when_no_settings_fit_shorter_rows_are_advised_and_those_do() -> None:
    long = numpy.full(200, 60_000)
    free = 6 * GIB
    with pytest.raises(StudioError) as told:
        chosen(free, lengths=long, max_length=65536)
    advice = SHORTER.search(told.value.text)
    assert advice is not None
    length = int(advice[1])
    assert length < 60_000
    assert fits(free, lengths=numpy.minimum(long, length), max_length=length)
    assert not fits(free, lengths=numpy.minimum(long, 2 * length + 1), max_length=2 * length + 1)


def test_a_base_that_is_too_large_is_named() -> None:
    with pytest.raises(StudioError, match=r"The base alone takes 2\.\d GiB: take a smaller one"):
        chosen(2 * GIB)


def test_whatever_is_asked_the_answer_fits_or_the_advice_does() -> None:
    draw = random.Random(11)
    advised = fitted = 0
    for _ in range(40):
        pins: dict[str, Any] = {}
        if draw.random() < 0.6:
            pins["micro_batch_tokens"] = draw.choice((64, 1000, 8192, 65536))
        if draw.random() < 0.6:
            pins["gradient_checkpointing"] = draw.choice(("none", "selective", "full", "offload"))
        if draw.random() < 0.6:
            pins["optimizer"] = draw.choice(("adamw_torch", "adamw_8bit", "paged_adamw_8bit"))
        longest = draw.choice((100, 2000, 30_000))
        lengths = numpy.random.default_rng(draw.randint(0, 99)).integers(10, longest, 200)
        free = draw.choice((3, 4, 6, 12, 40)) * GIB
        given: dict[str, Any] = {"lengths": lengths, "effective_batch": draw.choice((1, 16, 48))}
        given["rates"] = draw.choice((GPU, GPU, CPU))
        try:
            found = chosen(free, **given, **pins)
        except StudioError as error:
            advised += 1
            if advice := ADVICE.search(error.text):
                names = ("micro_batch_tokens", "gradient_checkpointing", "optimizer")
                new: dict[str, Any] = dict(zip(names, advice.groups(), strict=True))
                new["micro_batch_tokens"] = int(new["micro_batch_tokens"])
                assert fits(free, **given, **new) and fits(free, **given)
            elif shorter := SHORTER.search(error.text):
                cut = given | {"lengths": numpy.minimum(lengths, int(shorter[1]))}
                assert fits(free, **cut) and not fits(free, **given)
            else:
                last = re.search("The base alone takes|Lower lora.r", error.text)
                assert last is not None and not fits(free, **given)
        else:
            fitted += 1
            assert found.peak_bytes <= plan.USED_SHARE * free
            wanted = pins.get("micro_batch_tokens")
            if wanted is not None:
                assert found.plan.micro_batch_tokens == max(wanted, found_longest(found, given, pins))
            pinned = pins.get("optimizer", found.plan.optimizer)
            # Paged memory needs CUDA.
            pinned = pinned if given["rates"].cuda else pinned.removeprefix("paged_")
            assert pinned == found.plan.optimizer
    assert fitted > 10 and advised > 10


def found_longest(found: Outcome, given: dict[str, Any], pins: dict[str, Any]) -> int:
    return load(config(effective_batch=given["effective_batch"], **pins), given["lengths"]).longest


def test_what_is_said_to_be_the_least_is_more_than_what_is_said_to_be_free() -> None:
    bottom = smallest(config(), SHAPE, load(config()), GPU).peak_bytes
    with pytest.raises(StudioError) as told:
        chosen(bottom * 1.05)
    numbers = re.search(
        r"([\d.]+) GiB is the least for these settings, ([\d.]+) GiB can be used", told.value.text
    )
    assert numbers is None or float(numbers[1]) > float(numbers[2])


def test_a_huge_adapter_is_not_blamed_on_the_base() -> None:
    huge = ModelSize(**{**vars(SHAPE), "adapter_parameters": 64 * ADAPTER})
    with pytest.raises(StudioError) as told:
        chosen(12 * GIB, shape=huge)
    assert "The base alone" not in told.value.text


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_selective_keeps_as_many_layers_as_fit(share: float) -> None:
    pins = {"micro_batch_tokens": 8192, "optimizer": "adamw_torch"}
    full = chosen(AMPLE, gradient_checkpointing="full", **pins).peak_bytes
    whole = chosen(AMPLE, gradient_checkpointing="none", **pins).peak_bytes
    free = (full + share * (whole - full)) / plan.USED_SHARE
    for wanted in ("selective", "auto"):
        found = chosen(free, gradient_checkpointing=wanted, **pins)
        kept = found.plan.layers_without_recompute
        assert 0 < kept < LAYERS and abs(kept / LAYERS - share) < 0.25
        more = kept + LAYERS // 8 + 1
        larger = Plan(8192, more, LAYERS, False, "adamw_torch", found.plan.graphs)
        asked = config(gradient_checkpointing=wanted, **pins)
        assert estimate(larger, SHAPE, load(asked), GPU).peak_bytes > plan.USED_SHARE * free
    why = found.plan.choices["checkpointing"]
    assert why.value == "selective" and f"{kept} of {LAYERS} layers" in why.why


def test_choices_say_why() -> None:
    ample, short = chosen(AMPLE).plan.choices, chosen(1.0001 * least()).plan.choices
    assert set(ample) == {"micro-batch", "checkpointing", "optimizer", "training path"}
    assert ample["checkpointing"] == ("none", "all activations fit")
    assert ample["optimizer"].value.startswith("adamw_torch") and "states fit" in ample["optimizer"].why
    assert re.fullmatch(r"[\d,]+ tokens", ample["micro-batch"].value) and "a step" in ample["micro-batch"].why
    assert ample["training path"].value == "hand-written decoder"
    assert "memory is short" in short["checkpointing"].why
    assert "8-bit states leave room" in short["optimizer"].why
    refused = ModelSize(**{**vars(SHAPE), "refusal": "its head is not a plain matrix"})
    path = chosen(AMPLE, shape=refused).plan.choices["training path"]
    assert path == ("autograd", "its head is not a plain matrix")


def test_autograd_is_expected_to_take_more_of_both() -> None:
    refused = ModelSize(**{**vars(SHAPE), "refusal": "its head is not a plain matrix"})
    pins = {"micro_batch_tokens": 8192, "gradient_checkpointing": "none", "optimizer": "adamw_torch"}
    mine, theirs = chosen(AMPLE, **pins), chosen(AMPLE, shape=refused, **pins)
    assert theirs.peak_bytes > 1.2 * mine.peak_bytes and theirs.step_seconds > 1.2 * mine.step_seconds
    assert not theirs.plan.graphs


def rows_of(steps: Any) -> list[list[int]]:
    """Steps without their order, and without that of their rows."""
    return sorted(sorted(map(int, step)) for step in steps)


def test_steps_are_the_recipes_own() -> None:
    one, again, other = load(config()), load(config()), load(config(seed=1))
    assert rows_of(one.steps) == rows_of(again.steps) != rows_of(other.steps)
    # 500 rows make 32 steps an epoch, the last of 4; two epochs are the default.
    assert len(one.steps) == 64 and sorted({len(step) for step in one.steps}) == [4, 16]
    assert sorted(row for step in one.steps for row in step) == sorted([*LENGTHS, *LENGTHS])
    assert one.longest == LENGTHS.max() and one.supervised_share == pytest.approx(0.5, abs=1e-3)
    assert one.largest_step == max(sum(step) for step in one.steps)
    short = load(config(max_steps=3))
    assert len(short.steps) == 3 and short.largest_step == max(sum(step) for step in short.steps)
    few = workload(config(), [10, 20, 30], 30)
    assert rows_of(few.steps) == [[10, 20, 30]] * 2 and few.largest_step == 60


def test_a_curriculum_is_looked_at_in_its_order() -> None:
    asked = validated({"training": {"effective_batch": 32}, "data": {"order": "short to long"}})
    ordered = sorted(LENGTHS.tolist())
    assert ordered[:32] in rows_of(load(asked, ordered).steps)


def test_rows_come_in_the_order_that_was_looked_at(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = recipe(
        data={"max_rows": 11},
        training={"max_steps": None, "epochs": 3, "effective_batch": 4, "seed": 5, "eval_steps": 100},
    )
    seen: list[Any] = []
    whole = Packer.__call__

    def packing(self: Packer, rows: Any) -> Any:
        seen.append([len(row["input_ids"]) for row in rows])
        return whole(self, rows)

    monkeypatch.setattr(Packer, "__call__", packing)
    assert do("train", add(short))["error"] is None
    lengths = [len(row.input_ids) for row in prepare(short).train]
    assert len(set(lengths)) > 5 and len(seen) == 9
    assert rows_of(workload(short, lengths, 100).steps) == rows_of(seen)


def test_shorter_rows_are_cut_in_every_step() -> None:
    one = load(config())
    cut = one.cut(100)
    assert cut.longest == 100 and cut.largest_step == max(sum(step) for step in cut.steps)
    assert rows_of(cut.steps) == rows_of([[min(row, 100) for row in step] for step in one.steps])
    same = one.cut(10_000)
    assert same.longest == one.longest and rows_of(same.steps) == rows_of(one.steps)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("tokens", [900, 1003, 4096])
def test_packs_are_planned_as_they_are_packed(graphs: bool, tokens: int) -> None:
    one = Plan(tokens, 0, LAYERS, False, "adamw_torch", graphs)
    assert (one.multiple > 1) == graphs
    for step in load(config(effective_batch=16)).steps[:20]:
        made = Packer(one.micro_batch_tokens, one.multiple)(tiny.rows(step))["step"].packs
        assert [pack.lengths for pack in made] == [tuple(lengths) for lengths in packed(one, step)]


def test_the_worst_pack_is_of_rows_as_long_as_the_longest() -> None:
    work = load(config())
    for graphs in (False, True):
        one = Plan(4096, 0, LAYERS, False, "adamw_torch", graphs)
        worst = worst_pack(one, work)
        assert worst[:-1] == [work.longest] * (len(worst) - 1) and 0 < worst[-1] <= work.longest
        assert 0.9 * 4096 < sum(worst) <= 4096


@pytest.mark.parametrize("graphs", [False, True])
def test_no_pack_is_larger_than_the_worst(graphs: bool) -> None:
    work, over = load(config()), []
    for tokens in (904, 1504, 2048, 4096, 7000, 8192):
        one = Plan(tokens, 0, LAYERS, False, "adamw_torch", graphs)
        largest = max(sum(pack) for step in work.steps for pack in packed(one, step))
        if largest > sum(worst_pack(one, work)):
            over.append((tokens, largest, sum(worst_pack(one, work))))
    assert not over


def test_what_fills_a_pack_up_stays_within_the_limit() -> None:
    one = Plan(1500, 0, LAYERS, False, "adamw_torch", True)
    for step in load(config()).steps:
        made = Packer(one.micro_batch_tokens, one.multiple)(tiny.rows(tuple(map(int, step))))["step"]
        assert max(pack.tokens for pack in made.packs) <= one.micro_batch_tokens


def test_small_packs_are_launched_by_graphs_and_large_ones_are_not() -> None:
    pins = {"gradient_checkpointing": "none", "optimizer": "adamw_torch"}
    assert chosen(AMPLE, micro_batch_tokens=1024, **pins).plan.graphs
    assert not chosen(AMPLE, micro_batch_tokens=32768, **pins).plan.graphs
    assert not chosen(AMPLE, micro_batch_tokens=1024, rates=CPU, **pins).plan.graphs


def test_a_cpu_keeps_everything_and_needs_no_large_packs() -> None:
    found = chosen(AMPLE, rates=CPU).plan
    assert found.layers_without_recompute == LAYERS and not found.offload and not found.graphs
    assert found.optimizer == "adamw_torch" and found.micro_batch_tokens <= plan.CPU_TOKENS
    # Where packs cost much and their tokens little, larger ones would be quicker.
    slow_memory = DeviceSpeed(1e18, 1e8, 1e-6, False)
    assert (
        chosen(AMPLE, rates=slow_memory, lengths=numpy.full(64, 800)).plan.micro_batch_tokens
        == plan.CPU_TOKENS
    )
    pinned = chosen(AMPLE, rates=CPU, gradient_checkpointing="offload").plan
    assert pinned.layers_without_recompute == 0 and not pinned.offload  # it would wait where it is


def test_free_memory_is_the_hosts_where_there_is_no_gpu() -> None:
    import psutil

    assert 0 < plan.free_bytes() <= psutil.virtual_memory().total
