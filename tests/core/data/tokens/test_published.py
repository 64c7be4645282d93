"""Published chat templates: every conversation is learned whole, warned about truly, or refused truly."""

import pytest

from tests.core.data.tokens import published
from tests.core.data.tokens.published import CONVERSATIONS, TABLE, Outcome, faults, outcome, templates

# Between them they look ahead and back, sort and rewrite arguments, drop, raise, and mark what is learned.
SAMPLE = ("deepseek_r1_distill", "gemma4_v5", "gptoss", "lfm2_2_5", "llama3_1", "nemotron_3_nano", "qwen3_6")


def outcomes(name: str) -> dict[str, Outcome]:
    found = {conversation: outcome(name, conversation) for conversation in CONVERSATIONS}
    wrong = {conversation: faults(name, conversation, one) for conversation, one in found.items()}
    assert not {conversation: each for conversation, each in wrong.items() if each}
    return found


def test_there_are_the_templates_that_trl_ships_and_conversations_of_every_kind() -> None:
    sources = [source for source, _ in templates().values()]
    assert sources.count("TRL") >= 41 and sources.count("rebuilt") == len(published.REBUILT_NAMES)
    assert len(CONVERSATIONS) >= 30 and set(SAMPLE) <= set(templates())


@pytest.mark.parametrize("name", SAMPLE)
def test_every_conversation_is_learned_whole_warned_about_or_refused_truly(name: str) -> None:
    rows = {
        line.split("|")[1].strip(): line
        for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]
        if "|" in line
    }
    assert rows[f"`{name}`"] == published.line(name, outcomes(name))


@pytest.mark.slow
def test_the_table_of_all_templates_is_what_is_found() -> None:
    found = {name: outcomes(name) for name in templates()}
    assert TABLE.read_text(encoding="utf-8") == published.table(found)


def learned(name: str, conversation: str) -> str:
    return outcome(name, conversation).learned


def test_a_tools_result_between_a_call_and_its_words_is_not_learned() -> None:
    assert learned("gemma4_v5", "call and words") == (
        '<|tool_call>call:weather{city:<|"|>romefirst and so on romelast<|"|>}<tool_call|>'
        "lookfirst and so on looklastreplyfirst it is so replylast<turn|>"
    )


def test_a_call_is_learned_whole_although_an_argument_names_its_function() -> None:
    assert learned("llama3_1", "function named in arguments") == (
        '{"name": "weather", "parameters": {"city": "weather", "note": '
        '"romefirst the weather, call weather romelast"}}<|eot_id|>replyfirst The weather replylast<|eot_id|>'
    )


def test_a_call_with_its_own_tags_for_every_argument_is_learned_whole() -> None:
    assert learned("nemotron_3_nano", "call, last") == (
        "</think>\n<tool_call>\n<function=weather>\n<parameter=city>\nromefirst and so on romelast\n"
        "</parameter>\n</function>\n</tool_call>\n<|im_end|>"
    )


@pytest.mark.parametrize("conversation", ["two calls", "two calls of one function"])
def test_a_lost_call_is_refused_by_its_number_with_what_helps(conversation: str) -> None:
    from plumbline.data.tokens.encode import encode
    from plumbline.errors import StudioError

    with pytest.raises(StudioError, match="leaves out a tool call.*2 of 2") as caught:
        encode(published.row_of(conversation), published.model_of("gptoss"), published.LONG)
    assert "a turn of its own" in caught.value.fix
