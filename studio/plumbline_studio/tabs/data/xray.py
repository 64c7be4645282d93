"""One row as coloured tokens, and what a whole set comes to at a cut."""

from typing import Any

from plumbline.data.selection import dropped_content, stats
from plumbline.data.selection.stats import Summary
from plumbline.data.tokens import encode
from plumbline.models import load
from plumbline_studio.messages import escape, facts

KEY = (
    '<div class="pl-key"><span class="learned">in the loss</span>'
    '<span class="end">end of turn, learned</span>'
    '<span class="pl-muted">masked</span><span class="cut">cut off</span></div>'
)
SHOWN_TOKENS = 6000  # more would make the page slow; the rest is counted


def picture(row: dict[str, Any], base: str, max_length: int) -> str:
    """:raises StudioError: when the base's template cannot render the row"""
    return encoded(row, base, max_length)[1]


def encoded(row: dict[str, Any], base: str, max_length: int) -> tuple[encode.Encoded, str]:
    """A row as tokens, and as HTML."""
    tokenizer = load.tokenizer(base)
    found = encode.encode(row, tokenizer, max_length)
    shown = encode.tokens(found, tokenizer)
    parts = []
    for token in shown[:SHOWN_TOKENS]:
        classes = f"{token.kind} special" if token.special else token.kind
        parts.append(f'<span class="{classes}">{escape(token.text)}</span>')
    more = len(shown) - SHOWN_TOKENS
    rest = f'<p class="pl-muted">and {more:,} more tokens</p>' if more > 0 else ""
    html = f'<div class="pl-card">{KEY}<div class="pl-xray">{"".join(parts)}</div>{rest}{_beside(row)}</div>'
    return found, html


def _beside(row: dict[str, Any]) -> str:
    """What a row holds beside what supervised training learns."""
    if "rejected" in row:
        said = escape("\n".join(message["content"] for message in row["rejected"]))
        told = "The worse answer of the pair, not learned by supervised training:"
        return f'<p class="pl-muted">{told}</p><div class="pl-xray"><span class="masked">{said}</span></div>'
    if row.get("desirable") is False:
        told = "Marked as an undesirable answer: supervised training learns nothing from it."
        return f'<p class="pl-warning">! {told}</p>'
    return ""


def whole(name: str, summary: Summary, measured: stats.Measured, max_length: int, base: str) -> str:
    """The whole set at a cut, in one line of figures, and what the base's template leaves out of it."""
    share = summary.supervised / max(summary.tokens, 1)
    said = [
        ("in the loss", f"{share:.0%} of {summary.tokens:,} tokens"),
        ("rows cut", f"{summary.cut_rows:,} ({summary.cut_tokens:,} tokens)"),
        ("rows with nothing to learn", f"{summary.empty_rows:,}"),
        ("end of turn learned", f"{summary.end_learned_rows / max(summary.rows, 1):.0%} of rows"),
    ]
    of = "" if measured.exact else f" (measured on {summary.rows:,} of {measured.total:,} rows)"
    title = f"<b>All of {escape(name)} at {max_length:,} tokens</b>{escape(of)}"
    lost = "".join(
        f'<p class="pl-warning">! {escape(text)}</p>'
        for text in dropped_content.sentences(summary.left_out, base, None)
    )
    return f'<div class="pl-card">{title}{facts(said)}{lost}</div>'
