"""The schema of a run. The form, the command line, recipes, SQLite and the model card use it.

`problems` reports everything that is wrong at once, by field; `RunConfig` objects are valid.
"""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from plumbline import untrusted
from plumbline.config.field import Section, other_names, setting
from plumbline.config.machines import MachinesSection
from plumbline.config.mapping import Mapping
from plumbline.config.method import MethodSection, current_method
from plumbline.config.problems import phrase, two_names
from plumbline.config.quantisation import QuantisationSection
from plumbline.config.recipe_yaml import MOST_BYTES, parsed
from plumbline.config.sections import PROJECTIONS as PROJECTIONS
from plumbline.config.sections import LoraSection, TrainingSection
from plumbline.errors import RecipeError, StudioError
from plumbline.home import assets
from plumbline.near_names import nearest, question

LONGEST_NAME = 80  # letters of the name of a run


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
        "The mixing desk fills this in",
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
    day: str = setting(
        "",
        "Day",
        "The date that some chat templates write (Llama 3.2, gpt-oss), like 2026-12-01. Filled in at Start "
        "and kept: resumed, evaluated or asked on another day, a run sees the same tokens. Empty means today",
    )

    @field_validator("day", mode="before")
    @classmethod
    def _a_day(cls, value: Any) -> Any:
        if isinstance(value, datetime.date):  # YAML reads an unquoted day as one
            return value.isoformat()
        if isinstance(value, str) and value:
            try:
                return datetime.date.fromisoformat(value).isoformat()
            except ValueError:
                raise ValueError("must be a day like 2026-12-01, or empty") from None
        return value

    @field_validator("mix", "mapping", mode="before")
    @classmethod
    def _from_text(cls, value: Any, info: ValidationInfo) -> Any:
        """The form gives structured settings as a line of YAML; empty means unset.

        :raises Refused: which is a ValueError, when it is none, or goes past a limit
        """
        if isinstance(value, str):
            value = untrusted.value_of(value)
        return (value or ()) if info.field_name == "mix" else (value or None)

    @property
    def parts(self) -> tuple[MixPart, ...]:
        """What is trained on: the mix, or the one dataset as a mix of its own."""
        return self.mix or (MixPart(dataset=self.dataset),)


class EvaluationSection(Section):
    """How base and adapter are compared on the held-out rows."""

    max_rows: int = setting(
        200,
        "Evaluated rows",
        "Held-out rows used, a sample by label and group that is the same for every run; more = narrower "
        "intervals",
        ge=1,
        le=100_000,
    )
    max_new_tokens: int = setting(64, "Answer length", "Most tokens generated per answer", ge=1, le=8192)
    batch: int = setting(16, "Evaluation batch", "Rows computed at once in evaluation", ge=1, le=1024)


class RunConfig(Section):
    """A whole run."""

    name: str = setting("", "Name", "Shown in lists; empty means dataset and rank", max_length=LONGEST_NAME)
    model: ModelSection = ModelSection()
    quantisation: QuantisationSection = QuantisationSection()
    lora: LoraSection = LoraSection()
    data: DataSection = DataSection()
    method: MethodSection = MethodSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    machines: MachinesSection = MachinesSection()

    def name_with(self, end: str) -> str:
        """The name with something behind it, as in ``cited r16``, for which a long name is shortened."""
        name = self.display_name
        room = LONGEST_NAME - len(end) - 1
        return f"{name if len(name) <= room else name[: room - 1] + '…'} {end}"

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
        return bool(self._extra.get("simple"))

    @property
    def heading(self) -> str:
        """The heading that the form puts above it; empty for most."""
        return str(self._extra.get("heading", ""))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that use it; empty means all."""
        return tuple(self._extra.get("methods", ()))

    @property
    def other_keys(self) -> tuple[str, ...]:
        """Keys that recipes and flags may have for it beside its own."""
        section = f"{self.section}." if self.section else ""
        return tuple(section + name for name in other_names(self.info))

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}


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
        found = {}
        for item in error.errors():
            path = [str(part) for part in item["loc"] if not isinstance(part, int)]
            if item["type"] == "two_names":
                path.append(item["ctx"]["name"])
            key = ".".join(path)
            found[key] = phrase(item) + (_nearest(key) if item["type"] == "extra_forbidden" else "")
        return found
    found = {}
    names = [part.dataset for part in config.data.mix]
    if len(set(names)) < len(names):
        found["data.mix"] = "names one dataset twice; give it a higher weight"
    if config.data.order == "by column" and not config.data.order_column:
        found["data.order_column"] = "must name a column when the order is by column"
    return found | config.method.conflicts() | config.machines.conflicts() | _at_odds(config)


def _at_odds(config: RunConfig) -> dict[str, str]:
    """Settings of adapter and training that contradict each other."""
    found, lora, metric = {}, config.lora, config.training.best_metric
    if both := sorted(set(lora.modules_to_save) & set(lora.target_modules)):
        found["lora.modules_to_save"] = f"has {', '.join(both)}, which gets an adapter already; take one out"
    if config.training.router_loss and not config.method.is_likelihood:
        found["training.router_loss"] = f"is not for the method {config.method.name}; set it to 0"
    if lora.init_lora_weights == "orthogonal" and lora.r % 2:
        found["lora.init_lora_weights"] = f"orthogonal needs an even rank, lora.r is {lora.r}"
    if lora.init_lora_weights == "loftq" and config.quantisation.method == "none":
        found["lora.init_lora_weights"] = "loftq makes up for quantisation, and there is none; take default"
    if lora.init_lora_weights == "loftq" and lora.use_dora:
        found["lora.init_lora_weights"] = (
            "loftq does not go with DoRA, whose lengths are the quantised base's"
        )
    if lora.use_dora and config.quantisation.method == "int8":
        # bitsandbytes 0.50 keeps the scales in one of two places, and peft 0.21 looks in the other.
        found["lora.use_dora"] = "does not go with int8, whose scales it does not find; take nf4 or none"
    if config.training.label_smoothing and not config.method.is_likelihood:
        name = config.method.name
        found["training.label_smoothing"] = f"is not for {name}, whose loss is of whole answers"
    if config.machines.sharding == "full" and config.method.name == "grpo":
        found["machines.sharding"] = "full is not for grpo, whose answers each GPU tries on its own"
    if config.training.engine == "trl":
        found |= _not_for_trl(config)
    datasets = [part.dataset for part in config.data.mix]
    if metric and metric not in datasets:
        known = f"one of {', '.join(datasets)}, or empty" if datasets else "empty, for there is no mix"
        found["training.best_metric"] = f"must be {known}"
    return found


def _not_for_trl(config: RunConfig) -> dict[str, str]:
    """What the reference does not compute, or computes as something else."""
    found = {}
    if config.method.name not in ("sft", "pretraining", "dpo"):
        found["training.engine"] = f"trl is no reference for {config.method.name}; take auto"
    for name in ("label_smoothing", "router_loss", "neftune_alpha"):
        if getattr(config.training, name):
            found[f"training.{name}"] = "is not for the engine trl; set it to 0"
    return found


def _nearest(key: str) -> str:
    """``, did you mean ...`` for a setting that does not exist; empty when none is like it."""
    section, _, name = key.rpartition(".")
    sections = {setting.section for setting in settings() if setting.section}
    names = {setting.name: setting.key for setting in settings()}
    here = sections if not section else {one.name for one in settings() if one.section == section}
    near = list(filter(None, [nearest(name, here, 0.7)]))
    near += sorted(one for one in here if one.startswith(name) or name.endswith(f"_{one}"))
    if near:
        return f", did you mean {f'{section}.' if section else ''}{near[0]}?"
    return f", did you mean {names[name]}?" if name in names else ""


def validated(raw: dict[str, Any], where: str = "recipe") -> RunConfig:
    """:raises RecipeError: with every problem, by field"""
    found = problems(raw)
    if found:
        raise RecipeError(found, where)
    return RunConfig.model_validate(raw)


def by_current_names(values: dict[str, Any], where: str = "changes") -> dict[str, Any]:
    """Settings by key, under the names that they have now; unknown keys stay.

    :raises RecipeError: when two names of one setting have different values
    """
    names = {other: setting.key for setting in settings() for other in setting.other_keys}
    current: dict[str, Any] = {}
    differing: dict[str, str] = {}
    for key, value in sorted(values.items(), key=lambda item: item[0] in names):
        name = names.get(key, key)
        value = current_method(value) if name == "method.name" else value
        if current.setdefault(name, value) != value:
            differing[name] = two_names(key, current[name], value)
    if differing:
        raise RecipeError(differing, where)
    return current


def changed(config: RunConfig, values: dict[str, Any], where: str = "changes") -> RunConfig:
    """A recipe with some settings changed.

    :param values: settings by key, as texts or as what they are; an empty text means the default
    :raises RecipeError: with everything wrong
    """
    if not values:
        return config
    values, raw = by_current_names(values, where), config.model_dump()
    known = {setting.key: setting.info.default for setting in settings()}
    if unknown := {key: "does not exist" + _nearest(key) for key in values if key not in known}:
        raise RecipeError(unknown, where)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        target = raw[section] if section else raw
        target[name] = known[key] if value == "" else value
    return validated(raw, where)


def loads(text: str, where: str = "recipe") -> RunConfig:
    """A recipe from YAML or JSON text (JSON is YAML)."""
    return validated(parsed(text, where), where)


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
        raise StudioError(f"preset {name!r}", "does not exist", _presets(name))
    path = assets() / "presets" / f"{name}.yaml"
    return loads(path.read_text(encoding="utf-8"), path.name)


def _presets(name: str) -> str:
    """What to take in place of a preset that does not exist."""
    return f"{question(name, preset_names())} Presets: {', '.join(preset_names())}.".strip()


def named(recipe: str) -> RunConfig:
    """A preset by its name, else a recipe file. :raises StudioError: with everything wrong in it"""
    if recipe in preset_names():
        return preset(recipe)
    path = Path(recipe)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return read_recipe(path)
    raise StudioError(recipe, "is neither a preset nor a file here", _presets(recipe))


def read_recipe(path: Path, where: str = "") -> RunConfig:
    """A recipe file. :raises StudioError: with file and field of everything wrong

    :param where: what messages call it; empty means by its name
    """
    try:
        with open(path, encoding="utf-8") as file:
            return loads(file.read(MOST_BYTES + 1), where or path.name)
    except FileNotFoundError:
        raise StudioError(str(path), "is not there", "Give the path of a YAML recipe.") from None
    except UnicodeDecodeError as error:
        raise StudioError(
            f"{where or path.name} byte {error.start}", "is not UTF-8", "Save it as UTF-8."
        ) from None
