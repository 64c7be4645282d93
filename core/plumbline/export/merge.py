"""Merge an adapter into its base in 16 bits, and check that the result answers alike.

Never into the 4-bit weights: rounding again would change them (peft issue 2321).
"""

import gc
import json
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from plumbline.config.schema import RunConfig
from plumbline.data.selection import mix
from plumbline.data.tokens.encode import continued_ids
from plumbline.errors import StudioError
from plumbline.evaluation.compare import refuse_without_adapter
from plumbline.evaluation.generate import greedy, task_of
from plumbline.export import bases, files
from plumbline.files import sha256_of
from plumbline.home import export_folder, run_folder
from plumbline.jobs.job import Job
from plumbline.markdown import code, plain, quoted
from plumbline.models import adapter_check, adapters, hardware, load
from plumbline.models.artifact import refuse_other_tokenizer
from plumbline.store import runs

PARITY_PROMPTS = 8


def merge(job: Job) -> dict[str, Any]:
    """Write base plus adapter as a plain safetensors model with its tokenizer.

    :returns: ``folder`` and ``file`` (a zip of it) in the export's folder, ``bytes``, ``sha256``,
        and ``parity``: merged against base + adapter, the largest difference of a next-token logit, how
        many of the prompts get the same next token, and how many the same greedy answer up to its end,
        by the written files' own tokenizer and end tokens; and ``bases``, see `plumbline.export.bases`, where
        the adapter learned on a quantised base
    :raises StudioError: when the run has no adapter, its tokenizer has changed, or the disk has no room
    """
    refuse_without_adapter(job.run_id)
    job.running()
    config = runs.recipe(job.run_id)
    whole = config.quantisation.model_copy(update={"method": "none", "compute_dtype": "bfloat16"})
    sixteen_bit = config.model_copy(update={"quantisation": whole})
    tokenizer = load.tokenizer(config.model.base, config.model.revision)
    artifact = run_folder(job.run_id) / "artifact"
    refuse_other_tokenizer(artifact, tokenizer)
    adapter_check.refuse_other_base(artifact, config.model.base, config.model.revision)
    asked = bases.tasks(job.run_id, config) if config.quantisation.method != "none" else []
    there: list[str] = []
    if asked:
        job.report(f"answering on the {config.quantisation.method} base")
        trained = adapters.opened(load.base_model(config), artifact)
        there = bases.answered(trained, tokenizer, config, asked, lambda done: job.check_stop())
        del trained
        gc.collect()
    job.report("loading the base in 16 bits", 0.05)
    model = adapters.opened(load.base_model(sixteen_bit), artifact)
    _refuse_full_disk(model, export_folder(job.id))
    job.check_stop()
    prompts = _prompts(job.run_id, config, tokenizer)
    before = _next_logits(model, prompts)
    job.report("answering before merging", 0.2)
    length = config.evaluation.max_new_tokens
    answers = [greedy(model, tokenizer, [prompt], length)[0] for prompt in prompts]
    here = bases.answered(model, tokenizer, config, asked, lambda done: job.check_stop())
    job.check_stop()
    job.report("merging", 0.4)
    adapters.untie(model)
    merged = model.merge_and_unload(safe_merge=True)
    parity = _parity(before, _next_logits(merged, prompts))
    job.check_stop()

    name = f"run-{job.run_id}-merged"
    final = export_folder(job.id) / name
    staged = final.with_name(name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    job.report("writing the model", 0.6)
    # Settings that came with a base may be such that transformers refuses to write them.
    merged.generation_config = type(merged.generation_config)()
    merged.save_pretrained(str(staged), safe_serialization=True)
    files.write_tokenizer(staged, config, tokenizer)
    _forget_origin(staged)
    job.check_stop()
    job.report("answering with what was written", 0.7)
    del model, merged
    gc.collect()
    same = [a == b for a, b in zip(answers, _written_answers(staged, prompts, length), strict=True)]
    parity |= {"same_answers": sum(same), "answer_tokens": length}
    if asked:
        parity["bases"] = bases.compared(config, asked, there, here)
    (staged / "README.md").write_text(_card(config, parity), encoding="utf-8")
    files.make_readable(staged)
    os.replace(staged, final)
    job.check_stop()
    job.report("writing the zip", 0.8)
    bundle = final.with_name(name + ".zip")
    # Weights do not compress, so they are stored.
    files.write_zip(bundle, name, sorted(final.iterdir()), zipfile.ZIP_STORED)
    runs.event(f"merged model written to exports/{job.id}/{name}", job.run_id, job.id)
    return {
        "folder": name,
        "file": bundle.name,
        "bytes": bundle.stat().st_size,
        "sha256": sha256_of(bundle),
        "parity": parity,
    }


def _refuse_full_disk(model: Any, folder: Path) -> None:
    # The folder and its zip, each as large as the weights.
    needed = 2 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(folder).free
    if free < needed + 200 * 1024**2:
        raise StudioError(
            "disk", f"{free / 1e9:.1f} GB are free, merging needs {needed / 1e9:.1f} GB", "Free some."
        )


def _prompts(run_id: int, config: RunConfig, tokenizer: Any) -> list[list[int]]:
    held_out = mix.held_out_rows(mix.of_run(run_id), PARITY_PROMPTS)
    length = config.training.max_length
    prompts = []
    for _, row in held_out:
        task = task_of(row)
        ids = task.prompt(tokenizer, config.data.day) if task else continued_ids(row["text"], tokenizer)
        prompts.append(ids[:length])
    return prompts


def _next_logits(model: Any, prompts: list[list[int]]) -> list[Any]:
    import torch

    with torch.no_grad():
        return [
            model(torch.tensor([prompt], device=model.device), logits_to_keep=1).logits[0, -1].float().cpu()
            for prompt in prompts
        ]


def _written_answers(folder: Path, prompts: list[list[int]], length: int) -> list[list[int]]:
    """Greedy answers of the written model, by its own tokenizer and end tokens, as anybody gets them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    device = hardware.device().value
    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    model = model.to(device).eval()
    ends = model.generation_config.eos_token_id
    return [greedy(model, tokenizer, [prompt], length, ends)[0] for prompt in prompts]


def _parity(before: list[Any], after: list[Any]) -> dict[str, Any]:
    pairs = list(zip(before, after, strict=True))
    return {
        "prompts": len(pairs),
        "largest_logit_difference": max((b - a).abs().max().item() for b, a in pairs),
        "same_next_token": sum(int(b.argmax() == a.argmax()) for b, a in pairs),
    }


def _forget_origin(folder: Path) -> None:
    """Where the base was loaded from may be a folder of this machine."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _card(config: RunConfig, parity: dict[str, Any]) -> str:
    change = f"\n{bases.sentence(parity['bases'])}.\n" if "bases" in parity else ""
    return f"""---
base_model: {quoted(config.model.base)}
tags: [merged, plumbline]
---
# {plain(config.display_name)}, merged

{code(config.model.base)} with a LoRA adapter merged into its 16-bit weights. On {parity["prompts"]} held-out
prompts the next token is the same as base + adapter's in {parity["same_next_token"]}; the largest
difference of a logit is {parity["largest_logit_difference"]:.3g}. The greedy answer, its end included
(at most {parity["answer_tokens"]} tokens), is the same in {parity["same_answers"]}.
{change}"""
