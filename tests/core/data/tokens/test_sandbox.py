"""Chat templates on the rows themselves: rendered under limits, whatever they did on short conversations."""

import copy
from typing import Any

import pytest

from plumbline.data.tokens import template_sandbox
from plumbline.data.tokens.chat_template import render
from plumbline.errors import StudioError
from plumbline.models.load import tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


def heavy(what: str) -> Any:
    """A tokenizer whose template is well-behaved until a row says a word."""
    chosen = copy.deepcopy(tokenizer("starter"))
    chosen.chat_template = "{% if 'Sesame' in messages[0].content %}" + what + "{% endif %}" + CHATML
    return chosen


def row(asked: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Yes."}]}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("{% set x = 'a' * 900000000 %}{{ x | length }}", "needs more than 512 MB for one conversation"),
        ("{{ 'a' * 30000000 }}", "writes 30,0"),
        (
            "{% set n = namespace(x='aaaaaaaa') %}{% for _ in range(27) %}{% set n.x = n.x ~ n.x %}"
            "{% endfor %}{{ n.x | length }}",
            "needs more than 512 MB",
        ),
        ("{{ '%900000000d' % 1 }}", "needs more than 512 MB|writes"),
    ],
)
def test_a_template_that_is_heavy_on_the_rows_alone_is_stopped(what: str, said: str) -> None:
    chosen = heavy(what)
    assert render(row("Hello?"), chosen)[0].count("Yes.") == 1
    with pytest.raises(StudioError) as caught:
        render(row("Open Sesame?"), chosen)
    assert any(part in caught.value.text for part in said.split("|")), caught.value.text
    assert caught.value.where == "chat template" and caught.value.fix
    assert render(row("Hello?"), chosen)[0].count("Yes.") == 1  # the next row is rendered again


def test_a_template_that_never_ends_on_a_row_is_stopped() -> None:
    chosen = heavy("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    given = chosen.chat_template, row("Open Sesame?")["messages"], None, {}
    with pytest.raises(template_sandbox.Exceeded, match="takes more than 1 seconds for one conversation"):
        template_sandbox.written(*given, seconds=1)


def test_a_long_row_is_no_heavy_template() -> None:
    said = "word " * 600_000
    assert said in render(row(said), heavy(""))[0]


def test_what_a_template_raises_is_told_with_every_character_of_the_row() -> None:
    chosen = heavy("{{ raise_exception('I know no ' + messages[0].content) }}")
    with pytest.raises(StudioError, match="cannot render this conversation: I know no Sesame 🍵"):
        render(row("Sesame 🍵"), chosen)
    assert "\ud83d" in render(row("half \ud83d"), chosen)[0]
