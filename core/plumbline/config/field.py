"""What every field and section of the schema is made with."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    simple: bool = False,
    heading: str = "",
    methods: tuple[str, ...] = (),
    other_names: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """One field: its label, its help (the trade-off in one breath) and its limits.

    :param simple: shown in the short form; the others stand under "All settings"
    :param heading: begins a group of fields there
    :param methods: that use it; empty means all
    :param other_names: that recipes may have for it, those of earlier versions among them
    """
    extra: dict[str, Any] = {"simple": simple, "heading": heading, "methods": methods}
    extra["other_names"] = other_names
    return Field(default, title=label, description=help, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _by_its_name(cls, value: Any) -> Any:
        """What stands under another name goes to the setting's own; both may be there where they agree."""
        if not isinstance(value, dict):
            return value
        value = dict(value)
        for name, info in cls.model_fields.items():
            for other in other_names(info):
                if other not in value:
                    continue
                second = value.pop(other)
                if value.setdefault(name, second) != second:
                    values = {"name": name, "other": other, "first": value[name], "second": second}
                    raise PydanticCustomError("two_names", "{name} and {other} differ", values)
        return value


def other_names(info: FieldInfo) -> tuple[str, ...]:
    """Names that recipes may have for a field beside its own."""
    extra: Any = info.json_schema_extra
    return extra.get("other_names", ()) if isinstance(extra, dict) else ()
