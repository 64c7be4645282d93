"""What a checkpoint is of: recipe, data, base, tokenizer and versions, as its manifest holds them.

A run goes on exactly where all but the versions are the same; anything else is another run.
"""

import hashlib
import json
from typing import Any

from plumbline.config.schema import RunConfig, by_current_names
from plumbline.models import hardware, load
from plumbline.store import datasets

# Every other setting counts, so that one which is added later does too.
WITHOUT_EFFECT = {
    "name",
    "data.mapping",
    "training.micro_batch_tokens",
    "training.gradient_checkpointing",
    "training.logging_steps",
    "training.eval_steps",
    "training.save_steps",
    "training.keep_checkpoints",
    "training.price_per_hour",
    "evaluation.batch",
    "evaluation.max_new_tokens",
    "machines.gpus",
    "machines.sharding",
    "machines.num_machines",
    "machines.main_process_ip",
    "machines.port",
}


def identity(config: RunConfig, base_sha256: str) -> dict[str, Any]:
    """:param base_sha256: the digest of the base as it is held in memory"""
    settings = counted(config)
    return {
        "recipe": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "settings": settings,
        "data": {part.dataset: datasets.by_name(part.dataset)["sha256"] for part in config.data.parts},
        "base": {"id": config.model.base, "revision": config.model.revision, "sha256": base_sha256},
        "tokenizer": load.fingerprint(load.tokenizer(config.model.base, config.model.revision)),
        "versions": dict(hardware.versions()),
    }


def counted(config: RunConfig) -> dict[str, Any]:
    """The settings that change what is learned or measured, by key."""
    settings = {}
    for section, value in config.model_dump(mode="json").items():
        several = value.items() if isinstance(value, dict) else [("", value)]
        for name, setting in several:
            key = f"{section}.{name}" if name else section
            if key not in WITHOUT_EFFECT:
                settings[key] = setting
    return settings


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs in words, settings first; empty when a run may go on from the checkpoint."""
    if not was:
        return []
    # A setting that the checkpoint's version did not have was at what is its default now; the day was the
    # run's own.
    settings = by_current_names(was["settings"])
    before = counted(RunConfig()) | {"data.day": now["settings"]["data.day"]} | settings
    changes = [
        f"{key} was {_said(before.get(key))}, is {_said(now['settings'].get(key))}"
        for key in sorted(before.keys() | now["settings"].keys())
        if before.get(key) != now["settings"].get(key)
    ]
    for kind, template in (("data", "dataset {}"), ("base", "the base's {}"), ("tokenizer", "the base's {}")):
        old, new = was.get(kind, {}), now[kind]
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                change = f"was {_said(old.get(name))}, is {_said(new.get(name))}"
                changes.append(f"{template.format(name)} {change}")
    return changes


def other_versions(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Packages that changed since: the curve may move in its last digits."""
    old, new = was.get("versions", {}), now["versions"]
    return [
        f"{name} was {old[name]}, is {new[name]}" for name in old if name in new and old[name] != new[name]
    ]


def _said(value: Any) -> str:
    text = "unset" if value is None else str(value)
    is_digest = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:12] if is_digest else text[:60]
