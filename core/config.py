"""The schema of a run. The form, the command line, recipes, SQLite and the model card use it.

`problems` reports everything that is wrong at once, by field; `RunConfig` objects are valid.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from core.data.mapping import Mapping
from core.errors import RecipeError, StudioError
from core.home import assets
from core.phrases import phrase

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def setting(default: Any, label: str, help: str, *, simple: bool = False, **limits: Any) -> Any:
    """One field: its label, its help (the trade-off in one breath) and its limits.

    :param simple: shown in the short form; the others stand under "All settings"
    """
    return Field(default, title=label, description=help, json_schema_extra={"simple": simple}, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """The base model that the adapter is trained on."""

    base: str = setting(
        "starter",
        "Base model",
        "'starter' (10 M parameters, embedded), or a Hugging Face Hub id like org/name",
        simple=True,
        min_length=1,
        max_length=200,
    )
    revision: str | None = setting(
        None, "Revision", "Branch, tag or commit of a Hub model; empty means its main branch"
    )


class QuantisationSection(Section):
    """How the frozen base is held in memory."""

    method: Literal["nf4", "fp4", "int8", "none"] = setting(
        "nf4",
        "Quantisation",
        "nf4 fits trained weights best; int8: 8-bit weights, dequantised for each product, twice nf4's "
        "memory; none: four times",
    )
    double: bool = setting(
        True, "Double quantisation", "Also quantise the scales: saves 0.4 bits a weight, costs little"
    )
    compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = setting(
        "auto", "Compute type", "auto takes bfloat16 where the hardware has it, and says why if not"
    )


class LoraSection(Section):
    """The adapter: small trainable matrices beside the frozen weights (Hu et al., 2021)."""

    r: int = setting(
        16,
        "LoRA rank r",
        "Size of the adapter: higher = more capacity, memory and time",
        simple=True,
        ge=1,
        le=1024,
    )
    alpha: float = setting(
        32, "Alpha", "Strength of the adapter; usually 2 × r, raise both together", gt=0, le=4096
    )
    dropout: float = setting(
        0.0,
        "LoRA dropout",
        "Share of adapter inputs dropped; a few percent fight overfitting on small data, but any value "
        "above 0 leaves the fast path",
        ge=0,
        lt=1,
    )
    target_modules: tuple[str, ...] = setting(
        PROJECTIONS,
        "Target modules",
        "Linear layers that get an adapter; all seven learn most, q and v alone are smallest",
        min_length=1,
    )


class MethodSection(Section):
    """What is learned from a row."""

    name: Literal["supervised", "pretraining", "dpo", "orpo", "kto", "grpo"] = setting(
        "supervised",
        "Method",
        "supervised learns the answers; pretraining every token of plain texts, long ones in windows; dpo "
        "and orpo better answers against worse ones; kto answers with a verdict; grpo tries answers of its "
        "own and learns from those that pass a check",
    )
    beta: float = setting(
        0.1,
        "Beta",
        "dpo, kto: how close to the base's answers; orpo: weight of the judgement; 0.1 is usual",
        gt=0,
        le=100,
    )
    desirable_weight: float = setting(
        1.0, "Desirable weight", "kto: weight of good answers; raise it where they are few", gt=0, le=1000
    )
    undesirable_weight: float = setting(
        1.0, "Undesirable weight", "kto: weight of bad answers; raise it where they are few", gt=0, le=1000
    )

    check: Literal["exact", "contains", "regex", "json"] = setting(
        "exact",
        "Check",
        "grpo: an answer passes when it equals the row's, contains it, matches the pattern, or is a JSON "
        "object or list",
    )
    pattern: str = setting(
        "",
        "Pattern",
        "grpo with the check regex: a Python regular expression, found anywhere",
        max_length=500,
    )
    answers: int = setting(
        8, "Answers", "grpo: tried for each question; more = steadier, slower steps", ge=2, le=64
    )
    temperature: float = setting(
        1.0, "Temperature", "grpo: of the tried answers; lower = less variety to learn from", gt=0, le=5
    )

    @property
    def judges(self) -> bool:
        """Whether rows hold judged answers."""
        return self.name in ("dpo", "orpo", "kto")

    @property
    def is_likelihood(self) -> bool:
        """Whether the loss is a mean negative log-likelihood, so that its exponential is a perplexity."""
        return self.name in ("supervised", "pretraining")


class MixPart(Section):
    """One dataset of a mix."""

    dataset: str = setting(..., "Dataset", "Name of a dataset in this workspace", min_length=1)
    weight: float = setting(1.0, "Weight", "How often each row is shown in an epoch", gt=0, le=100)
    prefix: str = setting(
        "", "Task prefix", "Begins every first question, to tell tasks apart", max_length=2000
    )


class DataSection(Section):
    """What is learned from."""

    dataset: str = setting(
        "cited-answers", "Dataset", "Name of a dataset in this workspace", simple=True, min_length=1
    )
    held_out_share: float = setting(
        0.1,
        "Held-out share",
        "Part of the rows kept for evaluation, when the dataset brings no held-out file",
        gt=0,
        le=0.5,
    )
    split: Literal["random", "stratified", "grouped"] = setting(
        "random",
        "Split",
        "stratified keeps every label's share; grouped keeps a group's rows on one side",
    )
    split_column: str = setting(
        "", "Split column", "Column to stratify or group by; empty means label, or group", max_length=100
    )
    split_seed: int = setting(42, "Split seed", "Same seed, same held-out rows", ge=0, lt=2**31)
    mix: tuple[MixPart, ...] = setting(
        (),
        "Mix",
        "Several datasets in place of one; weight 2 shows each row twice an epoch, 0.5 a random half. "
        "The mixing desk on the Data tab fills this in",
    )
    order: Literal["shuffled", "short to long", "long to short", "by column"] = setting(
        "shuffled", "Order", "A curriculum shows rows in this order in every epoch"
    )
    order_column: str = setting("", "Order column", "Column of the order by column", max_length=100)
    max_rows: int | None = setting(
        None, "Row limit", "Train on this many rows only, for a trial; empty means all", ge=1
    )
    mapping: Mapping | None = setting(
        None, "Mapping", "Which column is what, when a file is imported with this recipe; empty means guessed"
    )

    @field_validator("mix", "mapping", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """The form gives structured settings as a line of YAML; empty means unset."""
        if isinstance(value, str):
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError:
                return value
        return (value or ()) if info.field_name == "mix" else (value or None)

    @property
    def parts(self) -> tuple[MixPart, ...]:
        """What is trained on: the mix, or the one dataset as a mix of its own."""
        return self.mix or (MixPart(dataset=self.dataset),)


class TrainingSection(Section):
    """How the adapter learns."""

    epochs: float = setting(
        2, "Epochs", "Passes over the data; 2 or 3 is usual, more overfits", simple=True, gt=0, le=1000
    )
    max_steps: int | None = setting(
        None, "Step limit", "Stop after this many optimizer steps; empty means by epochs", ge=1
    )
    learning_rate: float = setting(
        2e-4,
        "Learning rate",
        "2e-4 is usual for LoRA; halve it if the loss jumps, small models bear more",
        simple=True,
        gt=0,
        le=0.1,
    )
    schedule: Literal["cosine", "linear", "constant"] = setting(
        "cosine", "Schedule", "How the learning rate falls over the run"
    )
    warmup_share: float = setting(
        0.03, "Warmup share", "Part of the run in which the learning rate rises from 0", ge=0, lt=1
    )
    effective_batch: int = setting(
        16,
        "Effective batch",
        "Rows per optimizer step; more = steadier, slower steps",
        simple=True,
        ge=1,
        le=4096,
    )
    micro_batch_tokens: int | None = setting(
        None,
        "Micro-batch tokens",
        "Tokens computed at once; less = less memory, same result; empty means the planner chooses",
        ge=16,
        le=1_048_576,
    )
    max_length: int = setting(
        1024,
        "Max length",
        "Tokens per row; longer rows are cut and may lose their answer",
        simple=True,
        ge=16,
        le=1_048_576,
    )
    optimizer: Literal["auto", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"] = setting(
        "auto",
        "Optimizer",
        "auto takes the fastest that fits; 8-bit states need a quarter of the memory, paged ones may "
        "wait in host memory (CUDA only)",
    )
    weight_decay: float = setting(0.0, "Weight decay", "Pull of the weights to zero", ge=0, le=1)
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Longest gradient let through; tames loss spikes", gt=0, le=1000
    )
    gradient_checkpointing: Literal["auto", "none", "selective", "full", "offload"] = setting(
        "auto",
        "Gradient checkpointing",
        "none keeps all activations: fastest; selective those of as many layers as fit; full recomputes "
        "all; offload too, and layer inputs wait in host memory: smallest; auto lets the planner choose",
    )
    seed: int = setting(0, "Seed", "Same seed, same run on the same machine", ge=0, lt=2**31)
    logging_steps: int = setting(1, "Log every", "Optimizer steps between logged points", ge=1)
    eval_steps: int | None = setting(
        None, "Evaluate every", "Optimizer steps; empty means ten times over the run", ge=1
    )
    save_steps: int | None = setting(
        None, "Checkpoint every", "Optimizer steps; empty means five times over the run", ge=1
    )
    keep_checkpoints: int = setting(
        2, "Checkpoints kept", "Newest ones on disk; each holds adapter and optimizer", ge=1, le=100
    )
    price_per_hour: float | None = setting(
        None,
        "Price per hour",
        "What the machine costs, in any currency, for the cost that is forecast; changes nothing else",
        ge=0,
        le=1_000_000,
    )

    @model_validator(mode="before")
    @classmethod
    def _from_earlier_versions(cls, value: Any) -> Any:
        """Recipes used to give rows in a micro-batch, which never changed a result, and a yes or no."""
        if not isinstance(value, dict):
            return value
        value = {name: given for name, given in value.items() if name != "micro_batch"}
        if isinstance(given := value.get("gradient_checkpointing"), bool):
            value["gradient_checkpointing"] = "full" if given else "none"
        return value


class EvaluationSection(Section):
    """How base and adapter are compared on the held-out rows."""

    max_rows: int = setting(
        200, "Evaluated rows", "Held-out rows used; more = narrower intervals", ge=1, le=100_000
    )
    max_new_tokens: int = setting(64, "Answer length", "Most tokens generated per answer", ge=1, le=8192)
    batch: int = setting(16, "Evaluation batch", "Rows computed at once in evaluation", ge=1, le=1024)


class RunConfig(Section):
    """A whole run."""

    name: str = setting("", "Name", "Shown in lists; empty means dataset and rank", max_length=80)
    model: ModelSection = ModelSection()
    quantisation: QuantisationSection = QuantisationSection()
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    method: MethodSection = MethodSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @property
    def display_name(self) -> str:
        names = "+".join(part.dataset for part in self.data.parts)
        return self.name or f"{names[:60]}-r{self.lora.r}"


@dataclass(frozen=True)
class Setting:
    """One field of the schema as the form and the command line see it."""

    section: str
    name: str
    info: FieldInfo

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def simple(self) -> bool:
        extra = self.info.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get("simple"))


def settings() -> Iterator[Setting]:
    """Every field of the schema, in the order of the form."""
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            for name, info in kind.model_fields.items():
                yield Setting(section, name, info)
        else:
            yield Setting("", section, field)


def problems(raw: dict[str, Any]) -> dict[str, str]:
    """Everything wrong with a recipe, as field -> message; empty when it is valid."""
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        return {
            ".".join(str(part) for part in item["loc"] if not isinstance(part, int)): phrase(item)
            for item in error.errors()
        }
    found: dict[str, str] = {}
    names = [part.dataset for part in config.data.mix]
    if len(set(names)) < len(names):
        found["data.mix"] = "names one dataset twice; give it a higher weight"
    if config.data.order == "by column" and not config.data.order_column:
        found["data.order_column"] = "must name a column when the order is by column"
    if config.method.name == "grpo" and config.method.check == "regex":
        try:
            re.compile(config.method.pattern)
        except re.error as error:
            found["method.pattern"] = f"is no regular expression: {error}"
        if not config.method.pattern:
            found["method.pattern"] = "must be given when the check is regex"
    return found


def validated(raw: dict[str, Any], where: str = "recipe") -> RunConfig:
    """:raises RecipeError: with every problem, by field"""
    found = problems(raw)
    if found:
        raise RecipeError(found, where)
    return RunConfig.model_validate(raw)


def loads(text: str, where: str = "recipe") -> RunConfig:
    """A recipe from YAML or JSON text (JSON is YAML)."""
    try:
        raw = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where} line {mark.line + 1}" if mark else where
        raise StudioError(place, "is not valid YAML", "Check indentation and colons there.") from error
    if not isinstance(raw, dict):
        raise StudioError(where, "must be a mapping of sections", "See assets/presets/default.yaml.")
    return validated(raw, where)


def dumps(config: RunConfig, format: Literal["yaml", "json"] = "yaml") -> str:
    raw = config.model_dump(mode="json")
    if format == "json":
        return json.dumps(raw, indent=2) + "\n"
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def preset_names() -> list[str]:
    return sorted(path.stem for path in (assets() / "presets").glob("*.yaml"))


def preset(name: str) -> RunConfig:
    """A named preset. :raises StudioError: when there is none of this name"""
    if name not in preset_names():
        raise StudioError(f"preset {name!r}", "does not exist", f"Known: {', '.join(preset_names())}.")
    path = assets() / "presets" / f"{name}.yaml"
    return loads(path.read_text(encoding="utf-8"), path.name)


def named(recipe: str) -> RunConfig:
    """A preset by its name, else a recipe file. :raises StudioError: with everything wrong in it"""
    return preset(recipe) if recipe in preset_names() else read_recipe(Path(recipe))


def read_recipe(path: Path) -> RunConfig:
    """A recipe file. :raises StudioError: with file and field of everything wrong"""
    try:
        return loads(path.read_text(encoding="utf-8"), path.name)
    except FileNotFoundError:
        raise StudioError(str(path), "is not there", "Give the path of a YAML recipe.") from None
    except UnicodeDecodeError as error:
        raise StudioError(f"{path.name} byte {error.start}", "is not UTF-8", "Save it as UTF-8.") from None
