"""Texts with a chat template written out become conversations again; trees become their best path."""

from pathlib import Path
from typing import Any

import pytest

from plumbline.config.mapping import Mapping
from plumbline.store import datasets as store
from tests.uploads import every, first, lines, refusal, stored

FORMS = {
    "ChatML": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n",
    "ChatML in one line": "<|im_start|>user\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>",
    "Llama 2": "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s>",
    "Mistral": "<s>[INST] Q [/INST] A</s>[INST] Q [/INST] A</s>",
    "Mistral 7": "<s>[SYSTEM_PROMPT]S[/SYSTEM_PROMPT][INST]Q[/INST]A</s>",
    "Llama 3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
    "Gemma": "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n",
    "Phi": "<|system|>\nS<|end|>\n<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n",
    "Phi 4": "<|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|>",
    "Zephyr": "<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n",
    "Alpaca": "### Instruction:\nQ\n\n### Response:\nA",
    "Alpaca, whole": "Below is an instruction that describes a task. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\nQ\n\n### Response:\nA</s>",
    "Guanaco": "### Human: Q\n### Assistant: A",
    "Vicuna": "S USER: Q ASSISTANT: A</s>",
    "DeepSeek": "<｜begin▁of▁sentence｜>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜>",
    "Command R": "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A<|END_OF_TURN_TOKEN|>",
}


@pytest.fixture(autouse=True)
def _workspace(workspace: Path) -> None:
    return


@pytest.mark.parametrize("form", FORMS)
def test_a_text_with_a_template_written_out_is_a_conversation(tmp_path: Path, form: str) -> None:
    said = {"user": "Why 1 < 2?\n\n  x = [1]", "assistant": "Because.\n\n- so", "system": "Be brief."}
    letters = {"Q": said["user"], "A": said["assistant"], "S": said["system"]}
    text = FORMS[form]
    for letter in "QAS":  # the letters that stand alone
        text = __import__("re").sub(
            rf"(?<![A-Za-z_]){letter}(?![A-Za-z_])", lambda _, x=letter: letters[x], text
        )
    dataset = stored(tmp_path, "a.jsonl", lines({"text": text}, {"text": text}))
    assert dataset["shape"].startswith("text with a template written out")
    turns = first(dataset)["messages"]
    assert all(turn["content"] == said[turn["role"]] for turn in turns)
    roles = [turn["role"] for turn in turns if turn["role"] != "system"]
    assert roles in (["user", "assistant"], ["user", "assistant"] * 2)
    told = [found["text"] for found in store.findings(dataset) if found["kind"] == "reading"]
    assert told == ["2 of 2 rows hold a chat template written out; they are read as conversations"]


def test_alpacas_input_belongs_to_the_question(tmp_path: Path) -> None:
    text = "### Instruction:\nSum up.\n\n### Input:\nLong.\n\n### Response:\nShort."
    turns = first(stored(tmp_path, "a.jsonl", lines({"text": text})))["messages"]
    assert [turn["content"] for turn in turns] == ["Sum up.\n\nLong.", "Short."]


def test_rows_that_do_not_parse_whole_are_named_and_plain_text_can_be_chosen(tmp_path: Path) -> None:
    good = {"text": FORMS["ChatML"]}
    broken = {"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_start|>"}
    content = lines(good, good, good, broken, {"text": "Something else."})
    message = refusal(tmp_path, "a.jsonl", content)
    assert "line 4: text is not whole ChatML" in message and "line 5: text holds none" in message
    assert "kind=text" in message and "leave bad rows out" in message
    plain = stored(tmp_path, "a.jsonl", content, mapping=Mapping(kind="text", text="text"))
    assert plain["rows"] == 5 and first(plain) == good


def test_a_text_that_only_quotes_a_template_stays_a_text(tmp_path: Path) -> None:
    rows = [{"text": f"ChatML begins a turn with <|im_start|>user, number {n}."} for n in range(4)]
    rows.append({"text": "A heading: ### Instruction:\nand no answer."})
    assert stored(tmp_path, "a.jsonl", lines(*rows))["shape"] == "text"


def reply(text: str, role: str, rank: int | None, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def test_the_best_path_of_a_tree_is_a_conversation(tmp_path: Path) -> None:
    best = reply("A0", "assistant", 0, reply("Q2", "prompter", None, reply("A3", "assistant", None)))
    gone = reply("A-", "assistant", -1, deleted=True)
    tree = {
        "prompt": reply("Q1", "prompter", None, reply("A1", "assistant", 1), gone, best),
        "state": "ready",
    }
    ends = {"prompt": reply("Q1", "prompter", None, reply("A", "assistant", 0, reply("Q", "prompter", 0)))}
    dataset = stored(tmp_path, "a.jsonl", lines(tree, ends))
    said = [[(turn["role"], turn["content"]) for turn in row["messages"]] for row in every(dataset)]
    assert said[0] == [("user", "Q1"), ("assistant", "A0"), ("user", "Q2"), ("assistant", "A3")]
    assert said[1] == [("user", "Q1"), ("assistant", "A")]
    (told,) = [found["text"] for found in store.findings(dataset) if found["kind"] == "reading"]
    assert told.startswith("1 of 2 rows are trees with other replies")
    assert "has no reply" in refusal(
        tmp_path, "b.jsonl", lines(tree, {"prompt": reply("Q", "prompter", None)})
    )
