"""Puts a run together: its plan, its forecast, and the trainer that carries it out."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from plumbline.batches.prepare import Prepared
from plumbline.config.schema import RunConfig
from plumbline.config.steps import intervals, total_steps
from plumbline.distributed.process_group import current
from plumbline.engine.plan import Plan
from plumbline.jobs.job import Job
from plumbline.models import adapter_init, hardware, load
from plumbline.planner import cost, early_stopping, forecast, measurements, model_size, parallelism, plan
from plumbline.planner.plan import Outcome


def arranged(config: RunConfig, prepared: Prepared) -> Plan:
    """How many processes compute a run and how they hold the base, before it is loaded.

    :raises StudioError: when it fits in no way
    """
    work = plan.workload(config, prepared.lengths, prepared.supervised)
    sizes, rates = model_size.model_size_of(config), _rates(config)
    steps = total_steps(config, len(prepared.train))
    return parallelism.choose(config, sizes, work, rates, plan.free_bytes(), steps).plan


def planned(config: RunConfig, prepared: Prepared, before: Plan) -> Outcome:
    """The plan for the memory that is free now that the base is loaded.

    The first process makes it for all of them: what they see differs a little, what they do must not.

    :param before: what `arranged` gave
    """
    # A base that is spread has been gathered already; where each holds all of it, nothing was sent yet.
    between = 0.0 if before.sharded else parallelism.between_bytes(before.processes, _rates(config))
    free = current().all_reduce_min(plan.free_bytes()) - between
    chosen = _planned(config, prepared, before, free) if current().first else None
    return current().broadcast(chosen)


def _planned(config: RunConfig, prepared: Prepared, before: Plan, free: float) -> Outcome:
    sizes = model_size.model_size_of(config)
    if before.sharded:
        sizes = replace(sizes, base_bytes=hardware.allocated_bytes())
    work = plan.workload(config, prepared.lengths, prepared.supervised).shared(before.processes)
    # The base has taken its memory already.
    cuda = hardware.device().value == "cuda"
    held = hardware.allocated_bytes() if cuda else sizes.base_bytes
    found = plan.choose(config, sizes, work, _rates(config), free + held)
    kept = {name: choice for name, choice in before.choices.items() if name in ("GPUs", "processes", "base")}
    chosen = parallelism.spread(found.plan) if before.sharded else found.plan
    chosen = replace(chosen, processes=before.processes, choices=kept | chosen.choices)
    return replace(found, plan=chosen)


def _rates(config: RunConfig) -> cost.DeviceSpeed:
    return cost.device_speed(hardware.device().value, hardware.compute_dtype(config).value)


def expected(config: RunConfig, prepared: Prepared, outcome: Outcome) -> str:
    """What is held against the outcome: the measured forecast of this recipe, or the counted one."""
    known = measurements.known(config)
    if known and forecast.Forecast.from_json(known).plan.processes == outcome.plan.processes:
        return known
    work = plan.workload(config, prepared.lengths, prepared.supervised)
    found = forecast.of_outcome(config, len(prepared.train), outcome, work, len(prepared.held_out))
    return found.to_json()


def trainer(
    config: RunConfig, job: Job, model: Any, prepared: Prepared, folder: Path, chosen: Plan, record: Any
) -> tuple[Any, dict[str, hardware.Choice]]:
    """The trainer of a run, and what was decided about it.

    :param record: a callback that writes down what is measured; see plumbline.training.loop.record
    """
    from datasets import Dataset
    from transformers import PrinterCallback, TrainingArguments

    from plumbline.batches.packing import Packer
    from plumbline.engine.select import engine
    from plumbline.training import optimizers
    from plumbline.training.loop import stopping
    from plumbline.training.loop.trainer import Trainer
    from plumbline.training.methods.preference import PreferenceTrainer
    from plumbline.training.methods.reward import RewardTrainer

    training = config.training
    decisions = {"device": hardware.device(), "compute type": hardware.compute_dtype(config)}
    decisions |= chosen.choices
    cuda = decisions["device"].value == "cuda"
    if not cuda:
        decisions["threads"] = hardware.threads()
    steps = total_steps(config, len(prepared.train))
    evaluated, saved = intervals(config, steps)
    decisions |= early_stopping.choices(config, steps)
    adapter_init.from_rows(model, config, prepared.train, job.check_stop)

    def make_engine(prepared_model: Any) -> Any:
        if by_trl:
            return None  # the model stays as TRL has it
        found, more = engine(prepared_model, config, chosen)
        decisions.update(more)
        return found

    common: dict[str, Any] = {
        "output_dir": str(folder / "checkpoints"),
        "max_steps": steps,
        # A batch of the loader is a whole optimizer step; the packer splits it.
        "per_device_train_batch_size": training.effective_batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": training.learning_rate,
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": hardware.optimizer(chosen.optimizer),
        "seed": training.seed,
        "data_seed": training.seed,
        "bf16": decisions["compute type"].value == "bfloat16",
        "fp16": decisions["compute type"].value == "float16",
        "use_cpu": not cuda,
        "logging_steps": training.logging_steps,
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps",
        "eval_steps": evaluated,
        "save_strategy": "steps",
        "save_steps": saved,
        "remove_unused_columns": False,
        "dataloader_pin_memory": cuda,
        # Without it every batch would wait until the device has done all that was asked of it.
        "accelerator_config": {"non_blocking": cuda},
        "disable_tqdm": True,
        "report_to": [],
    }
    by_trl = training.engine == "trl"
    if by_trl:
        from plumbline.training.methods import reference

        reference.refuse(config, model, chosen)
        arguments: Any = reference.arguments(config, prepared, chosen, common)
        reference_kind, decisions["training path"] = reference.chosen(prepared)
    else:
        arguments = TrainingArguments(**common)
    # Several GPUs are several processes here (plumbline.distributed), never torch's DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    rows: list[dict[str, Any]]
    if by_trl or prepared.others or prepared.questions:
        rows = [{"number": number} for number in range(len(prepared.train))]
        kind: Any = partial(RewardTrainer, config=config, prepared=prepared)
        if by_trl:
            kind = partial(reference_kind, prepared=prepared, batch=config.evaluation.batch)
        elif prepared.others:
            kind = partial(PreferenceTrainer, method=config.method, prepared=prepared)
    else:
        rows = [{"input_ids": row.input_ids, "labels": row.labels} for row in prepared.train]
        kind = partial(Trainer, held_out=prepared.held_out)
    made = kind(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=load.tokenizer(config.model.base, config.model.revision),
        engine=make_engine,
        packer=Packer(chosen.micro_batch_tokens, chosen.multiple, even=chosen.sharded),
        sources=prepared.sources,
        shuffled=config.data.order == "shuffled",
        keep=training.keep_checkpoints,
        job=job,
        record=record,
        deterministic=training.deterministic,
        optimizers=(optimizers.optimizer(config, arguments, model), None),
        rates=optimizers.schedule(config, steps),
    )
    made.add_callback(stopping.LastEvaluation(config))
    if current().first:
        made.ending = stopping.Ending(config, job, model, folder / "best")
        made.add_callback(made.ending)
    if config.lora.halved:
        half = optimizers.FrozenHalf(model, config.lora.r)
        made.add_callback(half)
        made.mask_gradients = half.mask
    made.remove_callback(PrinterCallback)
    # Rows come as arrays, not as lists of Python numbers.
    made.train_dataset = Dataset.with_format(made.train_dataset, "numpy")  # type: ignore[arg-type]
    return made, decisions
