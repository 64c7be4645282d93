"""Recognising what is not a plain exchange: classes, pairs of texts, multiple choice, and bare text."""

from typing import Any

from plumbline.config.mapping import Mapping
from plumbline.data.formats.columns import (
    ANSWERS,
    CHOICES,
    CONTEXTS,
    KEYS,
    LABELS,
    STEMS,
    TEXTS,
    Columns,
    Guess,
    Unclear,
    are_numbers,
    few,
    label_and_group,
    words,
)

_SHOWN = ("image", "images", "audio", "audios", "video", "videos")
_MEDIA = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"RIFF",
    b"ID3",
    b"\xff\xfb",
    b"OggS",
    b"fLaC",
    b"BM",
    b"\0\0\0",
)
_OFFERED = {"option", "choice", "sol", "ending", "op", "opt", "answer", "candidate", "alternative"}
_COMPARED = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
)


def refuse_pictures(columns: Columns) -> None:
    """:raises Unclear: when rows hold pictures or sound, which their text alone does not stand for"""
    for name in columns.values:
        value = columns.first(name)
        if isinstance(value, bytes) and not value.startswith(_MEDIA):
            raise Unclear(
                f"holds bytes that are no UTF-8 text ({name}); save that column as text, or leave it out"
            )
        stored = isinstance(value, bytes) or (isinstance(value, dict) and "bytes" in value)
        if stored or (value and name.lower() in _SHOWN):
            raise Unclear(f"holds pictures or sound ({name}), and only text is learned")


def choices(columns: Columns) -> Guess | None:
    """A question, its choices and the right one: as a letter, as the text, or counted from 0."""
    offered = columns.find(
        [name for name in CHOICES if _texts(columns.first(columns.by_plain.get(name, "")))]
    )
    apart = next((names for stem, names in columns.families().items() if stem in _OFFERED), [])
    stem = columns.find_text(STEMS, but=apart)
    key = columns.find(KEYS, but=(offered, stem, *apart))
    if not (offered or (apart and key and columns.families().keys().isdisjoint({"sentence", "question"}))):
        return None
    if not (stem and key):
        raise Unclear(f"holds choices without a known column for question or answer: {columns.listed()}")
    count = len(_texts(columns.first(offered))) if offered else len(apart)
    answers = columns.known(key)
    numbers = [int(value) for value in answers] if are_numbers(answers) else []
    labels = columns.first(offered).get("label", []) if isinstance(columns.first(offered), dict) else []
    if (
        numbers
        and not set(map(str, numbers)) & set(labels)
        and not (min(numbers) == 0 and max(numbers) < count)
    ):
        raise Unclear(
            f"numbers the right choice ({key}), and its first rows do not show that it counts from 0"
        )
    context = columns.find_text(CONTEXTS, but=(stem, key, *apart))
    mapping = Mapping(
        prompt=f"{{{context}}}\n\n{{{stem}}}" if context else stem,
        answer=key,
        choices=offered or "".join(f"{{{name}}}" for name in apart),
        **{part: name for part, name in label_and_group(columns, stem, key).items() if part == "group"},
    )
    return Guess("multiple choice", mapping)


def _texts(value: Any) -> list[str]:
    """The choices of a question: a list of texts, or an object that has them under ``text``."""
    value = value.get("text") if isinstance(value, dict) else value
    return (
        value if isinstance(value, list) and len(value) > 1 and all(isinstance(x, str) for x in value) else []
    )


def pairs(columns: Columns) -> Guess | None:
    """Two texts and the class of what they are to each other."""
    label = columns.find(("label", "labels", "label_text", "gold_label"))
    for first, second in _COMPARED:
        names = columns.find_text((first,)), columns.find_text((second,))
        if label and all(names):
            return _classes(columns, f"{{{names[0]}}}\n\n{{{names[1]}}}", label, "pair of texts/label")
    return None


def labelled_first(columns: Columns) -> Guess | None:
    """A text and a column called label: a class, whatever else the file holds."""
    label = columns.find(("label", "labels", "label_text"))
    answer = columns.find(ANSWERS[:8])
    return labelled(columns) if label and not answer else None


def labelled(columns: Columns) -> Guess | None:
    sure = columns.find(("label", "labels", "label_text"))
    label = sure or next(
        (
            name
            for name in [columns.find((name,)) for name in LABELS] + list(columns.values)
            if name and _is_class(name) and few(columns.values[name])
        ),
        "",
    )
    if not label or isinstance(columns.first(label), dict):
        return None
    text = columns.find(TEXTS, but=(label,)) or _longest(columns, label)
    if not columns.is_text(text):
        return None
    several = [names for names in columns.families().values() if text not in names]
    if several:
        raise Unclear(f"holds several texts beside a label: {columns.listed()}")
    return _classes(columns, text, label, "text/label")


def _is_class(name: str) -> bool:
    return "label" in words(name) or name.strip().lower() in LABELS


def _classes(columns: Columns, prompt: str, label: str, shape: str) -> Guess:
    if are_numbers(columns.known(label)):
        shape = shape.replace("label", "class number")
    parts = label_and_group(columns, prompt) | {"label": label}
    return Guess(shape, Mapping(prompt=prompt, answer=label, **parts))


def text(columns: Columns) -> Guess | None:
    name = columns.find_text(TEXTS[:8]) or columns.find(("text",))
    if not name and len(columns.values) == 1 and columns.is_text(next(iter(columns.values))):
        name = next(iter(columns.values))
    if not name:
        return None
    others = [_length(columns, other) for other in columns.values if other != name]
    if any(other and other * 2 >= _length(columns, name) for other in others):
        raise Unclear(f"holds several texts, and which is to be learned is not clear: {columns.listed()}")
    return Guess("text", Mapping(kind="text", text=name, **label_and_group(columns, name)))


def _length(columns: Columns, name: str) -> float:
    """Mean characters of a column of sentences; 0 for one of names, numbers or addresses."""
    values = [value for value in columns.values[name] if isinstance(value, str)]
    spaces = sum(value.count(" ") for value in values)
    return sum(map(len, values)) / len(values) if values and spaces >= 3 * len(values) else 0.0


def _longest(columns: Columns, label: str) -> str:
    """The column with the longest and most varied texts."""

    def score(name: str) -> float:
        texts = [value for value in columns.values[name] if isinstance(value, str)]
        if not texts:
            return 0.0
        return sum(map(len, texts)) / len(texts) * len(set(texts)) / len(texts)

    others = [name for name in columns.values if name != label]
    return max(others, key=score, default="")
