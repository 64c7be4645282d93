"""Which files of a dataset repository belong to which config and split, from their names alone.

The rules and the usual patterns are those of `datasets`; only names that the repository lists are
ever returned, so a card that points elsewhere leads nowhere.
"""

from collections import Counter
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

Splits = dict[str, list[str]]

# Suffix to family. Of several families in one config the most frequent is meant, text last.
FAMILIES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"}
SOUNDS = {".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a"}
MEDIA = PICTURES | SOUNDS | {".mp4", ".avi", ".mkv", ".webm"}


def is_inside(name: str) -> bool:
    """Whether a file's name stays inside of the folder that it is downloaded to."""
    path = PurePosixPath(name)
    return not (path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name)


def configs(declared: list[Any], names: list[str]) -> tuple[dict[str, Splits], str | None]:
    """Every config that has readable files, and the one that the card calls the default.

    :param declared: the card's ``configs``, may be empty
    :raises ValueError: or TypeError, KeyError, AttributeError when they are malformed
    """
    if not declared:
        return _kept({"default": _splits(None, names)}), None
    splits_by_config: dict[str, Splits] = {}
    default = None
    for entry in declared:
        config, root = str(entry["config_name"]), str(entry.get("data_dir") or "").strip("/")
        prefix = f"{root}/" if root else ""
        below = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        splits = _splits(entry.get("data_files"), below)
        splits_by_config[config] = {
            split: [prefix + name for name in files] for split, files in splits.items()
        }
        if entry.get("default"):
            default = config
    splits_by_config = _kept(splits_by_config)
    return splits_by_config, default if default in splits_by_config else None


def converted(names: list[str]) -> dict[str, Splits]:
    """Configs of the Hub's own Parquet copy: ``config/split/0000.parquet``."""
    splits_by_config: dict[str, Splits] = {}
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and parts[2].endswith(".parquet"):
            split = parts[1].removeprefix("partial-")
            splits_by_config.setdefault(parts[0], {}).setdefault(split, []).append(name)
    return splits_by_config


def _splits(declared: Any, names: list[str]) -> Splits:
    """Files by split: by the card's patterns, else by the first of the usual ones that fits."""
    from datasets.data_files import ALL_DEFAULT_PATTERNS, SPLIT_PATTERN_SHARDED, sanitize_patterns

    if declared:
        return {split: _matching(globs, names) for split, globs in sanitize_patterns(declared).items()}
    sharded: Splits = {}
    for name in _matching([SPLIT_PATTERN_SHARDED.format(split="*")], names):
        split = PurePosixPath(name).name.rsplit("-of-", 1)[0].rsplit("-", 1)[0]
        sharded.setdefault(split, []).append(name)
    if sharded:
        return sharded
    for patterns in ALL_DEFAULT_PATTERNS:
        files_by_split = {
            str(split): files for split, globs in patterns.items() if (files := _matching(globs, names))
        }
        if files_by_split:
            return files_by_split
    return {}


def _matching(globs: list[str], names: list[str]) -> list[str]:
    """Names that fit one of the patterns. Hidden files must be asked for, as in `datasets`."""
    from datasets.data_files import FILES_TO_IGNORE

    matching: dict[str, None] = {}
    paths = [(name, tuple(name.split("/"))) for name in names]
    for pattern in (PurePosixPath(glob).parts for glob in globs):
        ignored = set(FILES_TO_IGNORE) - {pattern[-1] if pattern else ""}
        hidden = _hidden(pattern)
        for name, parts in paths:
            if _fits(parts, pattern) and _hidden(parts) == hidden and parts[-1] not in ignored:
                matching[name] = None
    return list(matching)


def _fits(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether a path fits a glob in which ``**`` stands for any number of folders.

    Part by part with fnmatch, whose patterns cannot be made to run for hours.
    """
    if not pattern:
        return not parts
    if pattern[0] != "**":
        return bool(parts) and _part_fits(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
    if len(pattern) > 1 and "**" not in pattern[1:]:
        start = len(parts) - len(pattern) + 1
        return start >= 0 and _fits(parts[start:], pattern[1:])
    return any(_fits(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))


_part_fits = lru_cache(maxsize=100_000)(fnmatchcase)


def _hidden(parts: tuple[str, ...]) -> int:
    return sum(part.startswith((".", "__")) for part in parts)


def _family(name: str) -> str | None:
    return FAMILIES.get(PurePosixPath(name.lower().removesuffix(".gz")).suffix)


def _kept(all_configs: dict[str, Splits]) -> dict[str, Splits]:
    return {config: readable for config, splits in all_configs.items() if (readable := _readable(splits))}


def _readable(splits: Splits) -> Splits:
    """The files of the one family that prevails; none where pictures or sound do."""
    names = {name for files in splits.values() for name in files}
    counts = Counter(family for name in names if (family := _family(name)))
    media = sum(PurePosixPath(name.lower()).suffix in MEDIA for name in names)
    ranked = sorted(dict.fromkeys(FAMILIES.values()), key=lambda name: (name == "text", -counts[name]))
    chosen = next((family for family in ranked if counts[family]), None)
    if chosen is None or media > counts[chosen]:
        return {}
    files_by_split = {
        split: [name for name in files if _family(name) == chosen] for split, files in splits.items()
    }
    return {split: files for split, files in files_by_split.items() if files}


def what_else(names: list[str]) -> str:
    """What a repository without readable files holds, in words that follow its name."""
    suffixes = Counter(suffix for name in names if (suffix := PurePosixPath(name.lower()).suffix))
    if MEDIA & set(suffixes):
        return "holds pictures, sound or video, not text"
    listed = ", ".join(suffix for suffix, _ in suffixes.most_common(5)) or "no files"
    return f"has no data files of a known format (it holds {listed})"
