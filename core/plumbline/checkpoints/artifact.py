"""What a run leaves behind: the adapter with its recipe, figures, card and checksums."""

import json
import shutil
from pathlib import Path
from typing import Any

from plumbline.checkpoints import folders, summary
from plumbline.config.schema import RunConfig, dumps
from plumbline.errors import StudioError
from plumbline.files import sha256_of
from plumbline.markdown import code, plain, quoted
from plumbline.models import adapter_readers
from plumbline.models.artifact import CHECKSUMS

HEADER = 256 * 1024  # most that names and shapes take in the file


def write(
    folder: Path, model: Any, config: RunConfig, metadata: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Write the artifact aside, then put it in place of an older one.

    :param metadata: identity of base, tokenizer, dataset, run and environment
    :param metrics: the final figures, as in training_summary.json
    :raises StudioError: when more than the adapter's weights would be in it
    """
    staged = folder.with_name(folder.name + ".new")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        _fill(staged, model, config, metadata, metrics)
        folders.put(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _fill(
    staged: Path, model: Any, config: RunConfig, metadata: dict[str, Any], metrics: dict[str, Any]
) -> None:
    # Left to itself, peft adds whole embeddings when an adapter is on the head.
    model.save_pretrained(str(staged), safe_serialization=True, save_embedding_layers=False)
    _refuse_large(staged, model)
    # peft records where the base was loaded from, which may be a folder of this machine.
    config_path = staged / "adapter_config.json"
    adapter_config = json.loads(config_path.read_text(encoding="utf-8"))
    adapter_config["base_model_name_or_path"] = config.model.base
    adapter_config["revision"] = config.model.revision
    _write_json(config_path, adapter_config)
    _write_json(staged / "metadata.json", metadata | {"step": metrics["adapter_step"]})
    _write_json(staged / "training_metrics.json", metrics)
    (staged / "training_config.yaml").write_text(dumps(config), encoding="utf-8")
    model_card = card(config, metadata, metrics) + adapter_readers.section(adapter_config)
    (staged / "README.md").write_text(model_card, encoding="utf-8")
    names = sorted(path.name for path in staged.iterdir() if path.is_file())
    _write_json(staged / CHECKSUMS, {name: sha256_of(staged / name) for name in names})


def _refuse_large(staged: Path, model: Any) -> None:
    """peft adds whole embeddings when it believes that the vocabulary grew."""
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    size = sum(path.stat().st_size for path in staged.glob("*.safetensors"))
    if size > 1.2 * trained + HEADER:
        what = f"would have {size / 1e6:.1f} MB where {trained / 1e6:.1f} MB were trained"
        raise StudioError("adapter", what, "Please report this with the base's name.")


def card(config: RunConfig, metadata: dict[str, Any], metrics: dict[str, Any]) -> str:
    """The model card (Hub front matter and plain figures)."""
    training, lora = config.training, config.lora
    loss = _figure(metrics.get("base_eval_loss")), _figure(metrics.get("eval_loss"))
    perplexity = _figure(metrics.get("base_perplexity")), _figure(metrics.get("perplexity"))
    of_likelihood = f"| held-out perplexity | {perplexity[0]} | {perplexity[1]} |\n"
    quantised = config.quantisation.method + (
        " with double quantisation" if config.quantisation.double_quant else ""
    )
    remarks = "".join(f"{verdict[:1].upper()}{verdict[1:]}.\n\n" for verdict in summary.verdicts(metrics))
    return f"""---
library_name: peft
base_model: {quoted(config.model.base)}
tags: [lora, qlora, plumbline]
---
# {plain(config.display_name)}

A LoRA adapter for {code(config.model.base)}, trained ({config.method.name}) on

| dataset | rows learned | of the loss | rows measured, held out | SHA-256 |
|---|---|---|---|---|
{chr(10).join(_dataset(dataset) for dataset in metadata["datasets"])}

| | base | adapter |
|---|---|---|
| held-out loss ({config.method.loss_is}) | {loss[0]} | {loss[1]} |
{of_likelihood if config.method.is_likelihood else ""}
{remarks}Quantisation {quantised};
rank {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g} on {", ".join(lora.target_modules)};
learning rate {training.learning_rate:g} ({training.lr_scheduler_type}),
effective batch {training.effective_batch}, {metrics["steps"]} steps, seed {training.seed}. The adapter is
that of step {metrics["adapter_step"]}.

{_learned_on(config)}The base's weights are unchanged: {metadata["base"]["sha256_before"]} before and after.
`checksums.json` lists the SHA-256 of every file that training wrote; `training_config.yaml` is the recipe.
"""


def _learned_on(config: RunConfig) -> str:
    method = config.quantisation.method
    if method == "none":
        return ""
    return f"""The adapter learned on the base quantised to {method}, and these figures are of that. On the
16-bit base, which is another model, some of its answers differ.

"""


def _dataset(dataset: dict[str, Any]) -> str:
    cells = (f"{dataset['train_rows']:,}", f"{dataset['share_of_loss']:.0%}", f"{dataset['held_out_rows']:,}")
    name = code(dataset["name"]).replace("|", "\\|")
    return f"| {name} | {' | '.join(cells)} | `{dataset['sha256']}` |"


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
