"""Chat templates on the rows themselves: rendered under limits, whatever they did on short conversations."""

import copy
import os
import signal
import threading
from typing import Any

import pytest

from plumbline.data.tokens import template_sandbox
from plumbline.data.tokens.chat_template import render
from plumbline.data.tokens.encode import encode
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


def child_in_wait() -> int:
    """The process that renders, stopped, as one that a busy machine gives no time. :returns: its number"""
    render(row("Hello?"), heavy(""))
    pid = template_sandbox._child._process.pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_a_template_that_only_waits_for_the_processor_is_not_refused() -> None:
    given = heavy("").chat_template, row("Hello?")["messages"], None, {}
    pid = child_in_wait()
    # Longer by the clock than it may compute: that takes a second more at most.
    threading.Timer(2.5, os.kill, (pid, signal.SIGCONT)).start()
    assert "Yes." in template_sandbox.written(*given, seconds=1)[0]
    assert template_sandbox._child._process.pid == pid


def test_a_machine_that_gives_no_time_at_all_is_not_the_templates_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = heavy("{# a template of its own #}")
    child_in_wait()
    monkeypatch.setattr(template_sandbox, "PATIENCE", 0)
    with pytest.raises(StudioError, match="too busy to do it .* Try again") as caught:
        encode(row("Hello?"), chosen, 512)
    assert "base model" not in caught.value.text
    monkeypatch.undo()
    assert encode(row("Hello?"), chosen, 512).supervised  # what was said is not remembered


def test_a_long_row_is_no_heavy_template() -> None:
    said = "word " * 600_000
    assert said in render(row(said), heavy(""))[0]


def test_what_a_template_raises_is_told_with_every_character_of_the_row() -> None:
    chosen = heavy("{{ raise_exception('I know no ' + messages[0].content) }}")
    with pytest.raises(StudioError, match="cannot render this conversation: I know no Sesame 🍵"):
        render(row("Sesame 🍵"), chosen)
    assert "\ud83d" in render(row("half \ud83d"), chosen)[0]
