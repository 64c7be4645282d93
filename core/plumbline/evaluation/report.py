"""An evaluation as figures and sentences; the page and the terminal show the same."""

from typing import Any

from plumbline.evaluation import preference

SIDES = ("base", "adapter")
_FORMS = (
    ("exact_match", "exact match", "{:.1%}"),
    ("token_f1", "token F1", "{:.3f}"),
    ("loss", "loss (nats per token)", "{:.4f}"),
    ("perplexity", "perplexity", "{:.3f}"),
)


def rows_of(result: dict[str, Any]) -> str:
    """Which rows it is of, as in ``200 of 3,080 held-out rows, 77 of 77 labels``."""
    sample = result.get("sample")
    if sample is None:
        return f"the first {result['rows']:,} held-out rows"
    if "windows" in sample:
        windows = f"{result['rows']:,} of {sample['windows']:,} windows"
        return f"{windows}, of {sample['texts']:,} of {sample['pool']:,} held-out texts"
    return ", ".join([f"{result['rows']:,} of {sample['pool']:,} held-out rows", *classes_of(sample)])


def classes_of(sample: dict[str, Any]) -> list[str]:
    """As in ``77 of 77 labels``, for labels and groups."""
    texts = []
    for name in ("labels", "groups"):
        if name in sample:
            some, whole = sample[name]
            texts.append(f"{some:,} of {whole:,} {name}")
    return texts


def figures(result: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: what was measured, base, adapter."""
    labels, judged = result.get("labels"), result.get("preference")
    table = preference.figures(judged) if judged else []
    for key, label, form in _FORMS:
        # Whether words of a label's name are right says nothing.
        if key not in result["base"] or (labels and key == "token_f1"):
            continue
        if judged and key == "perplexity":
            continue
        name = "accuracy" if labels and key == "exact_match" else label
        if judged and key == "loss":  # of the likelihood, which is not the loss that was trained
            name = f"{'all' if judged['method'] == 'kto' else 'better'} answers: {name}"
        table.append([name, *(form.format(result[side][key]) for side in SIDES)])
        if labels and key == "exact_match":
            most, share = labels["always"]
            table.append([f"always “{_short(most)}”", *[form.format(share)] * len(SIDES)])
    # Evaluations of earlier versions did not count them.
    cut = {side: result[side].get("cut", []) for side in SIDES}
    if any(cut.values()):
        table.append(["answers cut at the longest answer", *(f"{len(cut[side])}" for side in SIDES)])
    return table


def recall(result: dict[str, Any]) -> list[list[str]]:
    """Rows of a table: each label, its rows, and the share of them that base and adapter got right."""
    listed = result.get("labels", {}).get("recall", [])
    return [
        [name, f"{rows:,}", f"{base / rows:.0%}", f"{adapter / rows:.0%}"]
        for name, rows, base, adapter in listed
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """What has to be known to read the figures."""
    sentences = preference.notes(result["preference"]) if "preference" in result else []
    sample = result.get("sample")
    if sample is None:
        sentences.append(
            "Made by an earlier version on the first rows of the held-out part: it need not stand for all of "
            "them, and later evaluations are of other rows."
        )
    elif sample["watched"]:
        whole = sample.get("texts", result["rows"])
        many = "All" if sample["watched"] == whole else f"{sample['watched']:,}"
        chosen = ": they chose the step or the end, so these figures are a little too good"
        sentences.append(
            f"{many} of these {'texts' if 'texts' in sample else 'rows'} were measured while training too"
            f"{chosen if sample['chose'] else ''}."
        )
    else:
        chosen = " and chose the step or the end" if sample["chose"] else ""
        sentences.append(f"Other held-out rows than these were measured while training{chosen}.")
    if calling := result.get("calling"):
        what = "exact match and token F1 leave them out" if result["answers"] else "no answers are compared"
        sentences.append(f"{calling:,} answers call a tool, and are judged by their loss alone: {what}.")
    if "exact_match" in result["base"] and "rule" not in result:
        sentences.append(
            "Answers were compared by an earlier rule, which left signs and symbols out of token F1."
        )
    if result.get("quantisation", "none") != "none":
        sentences.append(
            f"Measured on the {result['quantisation']} base that the adapter learned on. The 16-bit base, "
            "which it is merged into, is another model: Merge measures what that changes."
        )
    close = [result[side].get("close", 0) for side in SIDES]
    if any(close):
        points = 100 * max(close) / result["answers"]
        sentences.append(
            f"In {result['precision']} a token of {close[0]:,} answers of the base and {close[1]:,} of the "
            "adapter was next to equal to a second one: with another evaluation batch these can come out "
            f"otherwise, and move exact match by at most {points:.1f} points."
        )
    return sentences


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:39] + "…"
