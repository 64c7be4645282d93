"""Twelve families of chat templates: the loss mask equals TRL's, with generation marks and without."""

import copy
import json
import random
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken

from plumbline.data.tokens import chat_template as render_module
from plumbline.data.tokens import template_check, template_sandbox
from plumbline.data.tokens.chat_template import render
from plumbline.data.tokens.encode import IGNORED, encode, end_tokens
from plumbline.errors import StudioError
from plumbline.models.load import tokenizer
from tests.core.data.tokens.families import (
    CASES,
    FAMILIES,
    LONG,
    TALKS,
    TOOL_TALKS,
    TOOLS,
    as_trl_does,
    learned,
    mask,
    model_of,
    row_of,
    talk,
)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """No child process for each of the many variants; one test checks every family's template."""
    monkeypatch.setattr(template_check, "_problem", lambda *task: None)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_template_passes_the_check(family: str) -> None:
    assert template_check.check_template(model_of(family, False)) == model_of(family, False).chat_template


@pytest.mark.parametrize(("family", "name"), CASES)
def test_with_marks_tokens_and_mask_are_those_of_trl(unchecked: None, family: str, name: str) -> None:
    chosen, row = model_of(family, True), row_of(name)
    theirs, encoded = as_trl_does(row, chosen), encode(row, chosen, LONG)
    assert encoded.input_ids == theirs["input_ids"]
    assert mask(encoded) == theirs["assistant_masks"]


@pytest.mark.parametrize(("family", "name"), CASES)
def test_without_marks_tokens_and_mask_are_the_same(unchecked: None, family: str, name: str) -> None:
    row, chosen = row_of(name), model_of(family, False)
    encoded = encode(row, chosen, LONG)
    assert encoded.input_ids == chosen(render(row, chosen)[0], add_special_tokens=False).input_ids
    assert encoded == encode(row, model_of(family, True), LONG)


@pytest.mark.parametrize(("family", "name"), [case for case in CASES if case[1] != "tool, last"])
def test_the_end_of_every_turn_is_learned(unchecked: None, family: str, name: str) -> None:
    chosen, row = model_of(family, False), row_of(name)
    text, spans = render(row, chosen)
    ends = tuple({FAMILIES[family].end, FAMILIES[family].eos, "<|end|>", "<|call|>"})
    assert len(spans) == sum(message["role"] == "assistant" for message in row["messages"])
    assert all(text[start:end].endswith(ends) for start, end in spans)


LEARNED = {
    "chatml": "Hello!<|im_end|>See you.<|im_end|>",
    "llama2": " Hello! </s> See you. </s>",
    "llama3": "Hello!<|eot_id|>See you.<|eot_id|>",
    "mistral": " Hello!</s> See you.</s>",
    "gemma": "Hello!<end_of_turn>See you.<end_of_turn>",
    "phi3": "Hello!<|end|>See you.<|end|><|endoftext|>",
    "qwen3": "Hello!<|im_end|><think>\n\n</think>\n\nSee you.<|im_end|>",
    "olmo2": "Hello!<|endoftext|>See you.<|endoftext|>",
    "zephyr": "Hello!</s>See you.</s>",
    "command_r": "Hello!<|END_OF_TURN_TOKEN|>See you.<|END_OF_TURN_TOKEN|>",
    "gptoss": "<|channel|>final<|message|>Hello!<|end|><|channel|>final<|message|>See you.<|return|>",
    "deepseek_r1": "Hello!<｜end▁of▁sentence｜>See you.<｜end▁of▁sentence｜>",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_is_the_answers_and_their_ends(unchecked: None, family: str) -> None:
    assert learned(family, talk("Hi", "Hello!", "Bye", "See you.")) == LEARNED[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_stops_where_the_template_ends_a_turn(unchecked: None, family: str) -> None:
    chosen, facts = model_of(family, False), FAMILIES[family]
    assert set(chosen.convert_ids_to_tokens(sorted(end_tokens(chosen)))) == {facts.end, facts.eos}


def test_a_thought_is_learned_where_the_template_keeps_it(unchecked: None) -> None:
    thought = talk(
        "Hi", "<think>\nA greeting.\n</think>\n\nHello!", "Bye", "<think>\nGone.\n</think>\n\nSee you."
    )
    qwen = "Hello!<|im_end|><think>\nGone.\n</think>\n\nSee you.<|im_end|>"
    assert learned("qwen3", thought) == qwen
    harmony = talk("Hi", "Hello!", "Bye")
    harmony.append({"role": "assistant", "content": "See you.", "thinking": "Gone."})
    assert learned("gptoss", harmony) == (
        "<|channel|>final<|message|>Hello!<|end|><|channel|>analysis<|message|>Gone.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>See you.<|return|>"
    )


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        (
            "llama3",
            'Hello!<|eot_id|>{"name": "weather", "parameters": {"city": "Rome", "days": 2}}<|eot_id|>'
            "Yes.<|eot_id|>Gladly.<|eot_id|>",
        ),
        (
            "mistral",
            ' Hello!</s>[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome", "days": 2}, '
            '"id": "call12345"}]</s> Yes.</s> Gladly.</s>',
        ),
        (
            "qwen3",
            'Hello!<|im_end|><tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n'
            "</tool_call><|im_end|>Yes.<|im_end|><think>\n\n</think>\n\nGladly.<|im_end|>",
        ),
        (
            "gptoss",
            "<|channel|>final<|message|>Hello!<|end|>"
            " to=functions.weather<|channel|>commentary json<|message|>"
            '{"city": "Rome", "days": 2}<|call|><|channel|>final<|message|>Yes.<|end|>'
            "<|channel|>final<|message|>Gladly.<|return|>",
        ),
    ],
)
def test_a_tool_call_is_learned_and_its_result_is_not(unchecked: None, family: str, expected: str) -> None:
    assert learned(family, TOOL_TALKS["tool, late"], TOOLS) == expected


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_turn_that_is_not_to_be_learned_is_masked(unchecked: None, family: str, marked: bool) -> None:
    messages = talk("Hi", "Hello!", "Bye", "See you.")
    messages[1]["learn"] = False
    chosen = model_of(family, marked)
    encoded = encode({"messages": messages}, chosen, LONG)
    said = chosen.decode([label for label in encoded.labels if label != IGNORED])
    assert "Hello!" not in said and LEARNED[family].endswith(said) and "See you." in said
    whole = encode({"messages": talk("Hi", "Hello!", "Bye", "See you.")}, chosen, LONG)
    assert encoded.input_ids == whole.input_ids


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% for m in messages %}\n{{ m.content }", "fails in line 2: unexpected '}'"),
        ("{{ messages[0].content }}\n\n{{ nothing.here }}", "fails in line 3: 'nothing' is undefined"),
        ("{{ raise_exception('not today') }}", "fails in line 1: not today"),
        ("{{ messages[0].content }}", "drops what the assistant says"),
        ("{% for m in messages %}{{ m.content ~ m.content }}{% endfor %}", "repeats what the assistant says"),
        ("{{ 'a' * 900000000 }}", "needs more than 512 MB"),
        ("{{ 'a' * 300000000 }}{{ 'b' * 300000000 }}{{ 'c' * 300000000 }}", "needs more|takes more"),
        ("{{ 'a' * 9000000 }}", "writes 9,000,000 characters"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more"),
        ("{{ 9 ** 99999999 }}", "takes more"),
    ],
)
def test_a_template_that_fails_loops_or_explodes_is_stopped_and_explained(template: str, why: str) -> None:
    chosen = copy.deepcopy(tokenizer("starter"))
    chosen.chat_template = template
    with pytest.raises(StudioError, match=why) as caught:
        encode(row_of("single"), chosen, LONG)
    assert caught.value.where == "chat template" and caught.value.fix


def test_the_check_keeps_what_it_found_and_spares_the_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = copy.deepcopy(tokenizer("starter"))
    chosen.chat_template = "{# kept #}{{ messages[0].content }}"
    with pytest.raises(StudioError, match="drops"):
        template_check.check_template(chosen)
    monkeypatch.setattr(template_sandbox.subprocess, "Popen", None)
    with pytest.raises(StudioError, match="drops"):
        template_check.check_template(chosen)
    assert template_check.check_template(tokenizer("starter")) == tokenizer("starter").chat_template


def test_a_template_may_have_a_sister_for_tools(unchecked: None) -> None:
    chosen = copy.deepcopy(model_of("qwen3", False))
    chosen.chat_template = {"default": "{{ raise_exception('no tools') }}", "tool_use": chosen.chat_template}
    assert encode(row_of("tool"), chosen, LONG) == encode(row_of("tool"), model_of("qwen3", False), LONG)
    with pytest.raises(StudioError, match="no tools"):
        encode(row_of("single"), chosen, LONG)


def test_a_turn_without_end_token_is_learned_to_the_next_header(unchecked: None) -> None:
    chosen = copy.deepcopy(tokenizer("starter"))
    chosen.chat_template = (
        "{% for m in messages %}{{ '### ' + m.role + ':\n' }}"
        "{{ '(old) ' if m.role == 'assistant' and not loop.last }}{{ m.content + '\n\n' }}{% endfor %}"
        "{{ '### assistant:\n' if add_generation_prompt }}"
    )
    text, spans = render({"messages": talk("Hi", "Hello!", "Bye", "See you.")}, chosen)
    assert [text[start:end] for start, end in spans] == ["(old) Hello!\n\n", "See you.\n\n"]


def test_an_undesirable_row_has_nothing_to_learn(unchecked: None) -> None:
    for marked in (True, False):
        row = {"messages": TALKS["single"], "desirable": False}
        assert encode(row, model_of("llama3", marked), LONG).supervised == 0


def test_a_tool_call_that_the_template_leaves_out_is_an_error(unchecked: None) -> None:
    with pytest.raises(StudioError, match="leaves out a tool call|drops"):
        encode(row_of("tool"), model_of("zephyr", False), LONG)


def test_the_text_begins_with_one_bos(unchecked: None) -> None:
    for family in ("llama2", "llama3", "gemma", "mistral", "command_r"):
        chosen = model_of(family, False)
        ids = encode(row_of("single"), chosen, LONG).input_ids
        assert ids[0] == chosen.bos_token_id and ids.count(chosen.bos_token_id) == 1


def test_trls_trainer_prepares_the_same_labels(unchecked: None) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": messages} for messages in TALKS.values()]
    settings = SFTConfig(assistant_only_loss=True, max_length=None, report_to=[], use_cpu=True)
    for family in ("chatml", "qwen3", "phi3"):
        chosen = model_of(family, True)
        trainer = SimpleNamespace(_tokenizer=chosen, chat_template=None, completion_only_loss=False)
        theirs = SFTTrainer._prepare_dataset(
            trainer, Dataset.from_list(rows), chosen, settings, False, None, "train"
        )
        ours = [encode(row, model_of(family, False), LONG) for row in rows]
        assert [each.input_ids for each in ours] == theirs["input_ids"]
        assert [each.labels for each in ours] == theirs["labels"]


@pytest.mark.parametrize(
    "name", ["llama3", "gemma", "gemma3", "phi3", "qwen2_5", "qwen3_instruct_2507", "cohere"]
)
def test_published_templates_give_the_mask_of_trls_training_templates(unchecked: None, name: str) -> None:
    """But for whitespace, which they learn after a turn or before it, as a header of their own."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    stock, marked = (copy.deepcopy(tokenizer("starter")) for _ in range(2))
    stock.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    training = (folder / f"{name}_training.jinja").read_text(encoding="utf-8")
    for chosen in (stock, marked):
        control = sorted(
            set(re.findall(r"<\|?\w+\|?>", training)) - {"<tools>", "<tool_call>", "<args-json-object>"}
        )
        chosen.add_tokens([AddedToken(token, special=True) for token in control], special_tokens=True)
    marked.chat_template = training
    for talk_name in ("single", "many turns", "the answer is the question", "not English"):
        row = row_of(talk_name)
        encoded, theirs = encode(row, stock, LONG), as_trl_does(row, marked)
        assert encoded.input_ids == theirs["input_ids"]
        pairs = zip(encoded.input_ids, mask(encoded), theirs["assistant_masks"], strict=True)
        differing = {stock.decode([token]).strip() for token, ours, other in pairs if ours != other}
        assert differing <= {""}, json.dumps(sorted(differing))


@pytest.mark.parametrize("family", FAMILIES)
def test_frames_find_what_asking_turn_by_turn_finds(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = model_of(family, marked=False)
    draw = random.Random(family)
    framing = render_module.frames(
        lambda messages, prompt=False: chosen.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt
        ),
        re.compile("|".join(map(re.escape, FAMILIES[family].control.split() or ["(?!)"]))),
    )
    # What may deceive a search: equal answers, answers in questions, the frame itself as text, whitespace.
    pieces = ["yes", "no", "yes yes", " yes", "no\n", "What?", "1", *(frame.lead for frame in framing or ())]
    rows = []
    for _ in range(60):
        messages = talk(*(draw.choice(pieces) for _ in range(2 * draw.randint(1, 4))))
        if len(messages) > 2 and draw.random() < 0.3:
            messages[1]["learn"] = False
        rows.append({"messages": messages})
    fast = [outcome(row, chosen) for row in rows]
    monkeypatch.setattr(render_module, "frames", lambda write, control: None)
    assert [outcome(row, chosen) for row in rows] == fast
    assert sum(isinstance(one, list) for one in fast) > 30


def outcome(row: dict[str, Any], chosen: Any) -> list[int] | str:
    """The labels, or what is refused."""
    try:
        return encode(row, chosen, LONG).labels
    except StudioError as error:
        return error.what
