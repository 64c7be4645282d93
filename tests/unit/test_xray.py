"""The loss mask: what the assistant says and its end of turn, nothing else."""

import copy
import json
from typing import Any

import pytest

from core.data.xray import (
    IGNORED,
    EncodeError,
    encode,
    encode_all,
    end_tokens,
    prompt_ids,
    refuse_nothing_to_learn,
    summarise,
    tokens,
)
from core.errors import StudioError
from core.home import assets
from core.models.load import tokenizer

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am well."},
]
CHATML_WITHOUT_GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_template(template: str | None) -> Any:
    changed = copy.deepcopy(tokenizer("starter"))
    changed.chat_template = template
    return changed


def learned_text(messages: list[dict[str, str]], chosen: Any) -> str:
    encoded = encode({"messages": messages}, chosen, 10_000)
    return chosen.decode([label for label in encoded.labels if label != IGNORED])


def sample_rows(name: str, count: int) -> list[dict[str, Any]]:
    lines = (assets() / "samples" / name / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def test_the_mask_equals_the_templates_own_generation_marks() -> None:
    chosen = tokenizer("starter")
    samples = [*sample_rows("cited-answers", 50), *sample_rows("plain-style", 50)]
    for talk in [TALK, *(row["messages"] for row in samples)]:
        marked = chosen.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        encoded = encode({"messages": talk}, chosen, 10_000)
        assert encoded.input_ids == marked["input_ids"]
        assert [int(label != IGNORED) for label in encoded.labels] == marked["assistant_masks"]


def test_a_template_without_generation_marks_gives_the_same_mask() -> None:
    chosen = with_template(CHATML_WITHOUT_GENERATION)
    assert learned_text(TALK, chosen) == "Hello!<|im_end|>I am well.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_still_masks_the_answers() -> None:
    # Drops every assistant turn's first word unless it is the last turn, as thinking models do.
    template = CHATML_WITHOUT_GENERATION.replace(
        "m['content'] +", "(m['content'] if loop.last or m['role'] != 'assistant' else m['content'][6:]) +"
    )
    talk = [*TALK[:2], {"role": "assistant", "content": "think Hello!"}, *TALK[3:]]
    with pytest.raises(StudioError, match="drops or rewrites an assistant turn"):
        encode({"messages": talk}, with_template(template), 1000)


def test_no_chat_template_is_explained() -> None:
    with pytest.raises(StudioError, match="has no chat template"):
        encode({"messages": TALK}, with_template(None), 1000)


def test_a_template_that_raises_is_explained() -> None:
    with pytest.raises(StudioError, match="cannot render this conversation: only two turns"):
        encode({"messages": TALK}, with_template("{{ raise_exception('only two turns') }}"), 1000)


def test_text_is_learned_whole_with_an_end() -> None:
    chosen = tokenizer("starter")
    encoded = encode({"text": "Once upon a time."}, chosen, 100)
    assert encoded.labels == encoded.input_ids
    assert encoded.input_ids[-1] == chosen.eos_token_id
    assert encoded.supervised == len(encoded.input_ids) - 1


def test_cutting_counts_what_is_lost() -> None:
    chosen = tokenizer("starter")
    whole = encode({"messages": TALK}, chosen, 10_000)
    short = encode({"messages": TALK}, chosen, 20)
    assert len(short.input_ids) == 20 and short.input_ids + short.cut == whole.input_ids
    assert short.cut_supervised == sum(label != IGNORED for label in whole.labels[20:]) > 0
    from core.data.overview import cut

    assert cut(whole, 20) == short


def test_a_length_that_leaves_nothing_to_learn_is_refused() -> None:
    chosen = tokenizer("starter")
    counted = summarise([encode({"messages": TALK}, chosen, 16)], chosen.eos_token_id)
    assert counted.empty_rows == 1
    with pytest.raises(StudioError, match="all 1 rows have no answer tokens within 16 tokens"):
        refuse_nothing_to_learn(counted, 16)


def test_the_shown_tokens_spell_the_rendered_row() -> None:
    chosen = tokenizer("starter")
    shown = tokens(encode({"messages": TALK}, chosen, 30), chosen)
    assert "".join(token.text for token in shown) == chosen.apply_chat_template(TALK, tokenize=False)
    kinds = {token.kind for token in shown}
    assert kinds == {"masked", "learned", "end", "cut"}
    assert all(token.special for token in shown if token.kind == "end")
