"""Loss curves of the fast path beside those of plain TRL and peft: 200 steps of the starter recipe."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.batches.prepare import prepare
from plumbline.config import schema
from plumbline.evaluation.loss import held_out_loss
from plumbline.store import runs
from tests.runs import add, do

pytestmark = pytest.mark.slow
STEPS = 200
WINDOW = 10  # steps that a smoothed loss is the mean of
OTHER_SEEDS = (1, 2, 3)


def recipe(seed: int) -> schema.RunConfig:
    raw = schema.preset("starter").model_dump()
    raw["training"] |= {"max_steps": STEPS, "effective_batch": 8, "eval_steps": STEPS, "seed": seed}
    raw["training"]["warmup_ratio"] = 0.0  # there TRL takes its first step with a rate of 0
    return schema.validated(raw)


def fast(config: schema.RunConfig) -> tuple[list[float], float]:
    """Losses of every step, and the held-out loss after the last, of an ordinary run."""
    run_id = add(config)
    job = do("train", run_id)
    assert job["error"] is None
    assert runs.decisions(run_id)["training path"]["value"] == "hand-written decoder"
    points = runs.metrics(run_id)
    return [point["loss"] for point in points[1:]], points[-1]["eval_loss"]


def plain(config: schema.RunConfig, folder: Path) -> tuple[list[float], float]:
    """The same of TRL's SFTTrainer as it comes: padded batches, transformers' forward, peft, autograd."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, PrinterCallback, set_seed
    from trl import SFTConfig, SFTTrainer

    from plumbline.models import adapters, hardware, load

    training, prepared = config.training, prepare(config)
    set_seed(training.seed)
    model = adapters.attach(load.base_model(config), config)
    tokenizer = load.tokenizer(config.model.base)
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=training.effective_batch,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch",
        seed=training.seed,
        data_seed=training.seed,
        bf16=hardware.compute_dtype(config).value == "bfloat16",
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        disable_tqdm=True,
        report_to=[],
    )
    rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
    trainer: Any = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    trainer.remove_callback(PrinterCallback)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held = held_out_loss(trainer.model, prepared.held_out, tokenizer.pad_token_id, config.evaluation.batch)
    return losses, held.loss


def smoothed(losses: list[float]) -> list[float]:
    return [sum(losses[end - WINDOW : end]) / WINDOW for end in range(WINDOW, len(losses) + 1)]


def distance(one: list[float], other: list[float]) -> float:
    """The mean absolute difference of the smoothed losses, in nats."""
    pairs = list(zip(smoothed(one), smoothed(other), strict=True))
    return sum(abs(first - second) for first, second in pairs) / len(pairs)


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="compares the paths of a CPU")
def test_the_fast_path_learns_as_plain_trl_does_within_the_spread_of_seeds(
    samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, our_held = fast(recipe(0))
    theirs, their_held = plain(recipe(0), tmp_path / "0")
    others = [plain(recipe(seed), tmp_path / str(seed)) for seed in OTHER_SEEDS]
    assert len(ours) == len(theirs) == STEPS
    apart = distance(ours, theirs)
    spread = [
        distance(one, other) for number, (one, _) in enumerate(others) for other, _ in others[number + 1 :]
    ]
    with capsys.disabled():
        print(f"\n{STEPS} steps: loss {theirs[0]:.4f} -> {smoothed(theirs)[-1]:.4f} (plain)")
        print(f"fast against plain, same seed: {apart:.5f} nats")
        print(f"plain against plain, other seeds: {', '.join(f'{one:.5f}' for one in spread)}")
        print(f"largest step apart {max(abs(a - b) for a, b in zip(ours, theirs, strict=True)):.5f}")
        print(f"held out: fast {our_held:.5f}, plain {their_held:.5f}, ", end="")
        print(f"other seeds {', '.join(f'{held:.5f}' for _, held in others)}")
    # Before the adapter has moved, both answer the same rows with the base's own loss.
    assert ours[0] == pytest.approx(theirs[0], rel=0.01)
    assert smoothed(theirs)[-1] < theirs[0] / 4
    assert apart <= min(spread)
    held = [loss for _, loss in others]
    assert abs(our_held - their_held) <= max(held) - min(held)
