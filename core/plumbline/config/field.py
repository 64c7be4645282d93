"""What every field and section of the schema is made with."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def setting(
    default: Any,
    label: str,
    help: str,
    *,
    simple: bool = False,
    heading: str = "",
    methods: tuple[str, ...] = (),
    **limits: Any,
) -> Any:
    """One field: its label, its help (the trade-off in one breath) and its limits.

    :param simple: shown in the short form; the others stand under "All settings"
    :param heading: begins a group of fields there
    :param methods: that use it; empty means all
    """
    extra: dict[str, Any] = {"simple": simple, "heading": heading, "methods": methods}
    return Field(default, title=label, description=help, json_schema_extra=extra, **limits)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
