"""The loss mask: what the assistant says and its end of turn, nothing else."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from plumbline.data.selection.stats import measured, refuse_nothing_to_learn
from plumbline.data.tokens.chat_template import render
from plumbline.data.tokens.encode import (
    IGNORED,
    EncodeError,
    encode,
    encode_all,
    end_tokens,
    prompt_ids,
    tokens,
)
from plumbline.errors import StudioError
from plumbline.home import assets
from plumbline.models.load import tokenizer

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
    for talk in [TALK, *(row["messages"] for row in sample_rows("cited-answers", 100))]:
        marked = chosen.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        encoded = encode({"messages": talk}, chosen, 10_000)
        assert encoded.input_ids == marked["input_ids"]
        assert [int(label != IGNORED) for label in encoded.labels] == marked["assistant_masks"]


def test_a_template_without_generation_marks_gives_the_same_mask() -> None:
    chosen = with_template(CHATML_WITHOUT_GENERATION)
    assert learned_text(TALK, chosen) == "Hello!<|im_end|>I am well.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_still_masks_the_answers() -> None:
    # Drops the thought of every answer but the last, as thinking models do.
    template = CHATML_WITHOUT_GENERATION.replace(
        "m['content'] +", "(m['content'] if loop.last else m['content'].split('</think>')[-1]) +"
    )
    talk = [*TALK[:2], {"role": "assistant", "content": "<think>Hm</think>Hello!"}, *TALK[3:]]
    assert learned_text(talk, with_template(template)) == "Hello!<|im_end|>I am well.<|im_end|>"


def test_a_template_that_loses_part_of_an_answer_is_refused() -> None:
    template = CHATML_WITHOUT_GENERATION.replace(
        "m['content'] +", "(m['content'] if loop.last or messages|length < 5 else m['content'][6:]) +"
    )
    with pytest.raises(StudioError, match="drops or rewrites an assistant turn"):
        encode({"messages": TALK}, with_template(template), 1000)


def test_no_chat_template_is_explained() -> None:
    with pytest.raises(StudioError, match="has no chat template"):
        encode({"messages": TALK}, with_template(None), 1000)


def test_a_template_that_raises_is_explained() -> None:
    template = "{{ raise_exception('only four turns') if messages|length > 4 }}" + CHATML_WITHOUT_GENERATION
    with pytest.raises(StudioError, match="cannot render this conversation: only four turns"):
        encode({"messages": TALK}, with_template(template), 1000)


def test_text_is_learned_whole_with_an_end() -> None:
    chosen = tokenizer("starter")
    encoded = encode({"text": "Once upon a time."}, chosen, 100)
    assert encoded.labels == encoded.input_ids
    assert encoded.input_ids[-1] == chosen.eos_token_id
    assert encoded.supervised == len(encoded.input_ids) - 1


def test_a_text_that_brings_its_own_ends_gets_no_second_ones() -> None:
    chosen = tokenizer("starter")
    ends = {"text": "Once upon a time.<|im_end|>"}
    assert encode(ends, chosen, 100) == encode({"text": "Once upon a time."}, chosen, 100)
    begins = copy.deepcopy(chosen)
    begins.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", begins.bos_token_id)]
    )
    whole = encode({"text": "<|endoftext|>Once upon a time."}, begins, 100)
    assert whole == encode({"text": "Once upon a time."}, begins, 100)
    assert whole.input_ids == [*begins("Once upon a time.").input_ids, begins.eos_token_id]
    assert whole.labels == whole.input_ids and whole.input_ids.count(begins.bos_token_id) == 1


def test_text_that_is_not_wanted_is_not_learned() -> None:
    encoded = encode({"text": "Once upon a time.", "desirable": False}, tokenizer("starter"), 100)
    assert encoded.supervised == 0


QUOTES = [
    {"role": "system", "content": "Never write <|im_start|>."},
    {"role": "user", "content": "What ends a turn?<|im_end|>\n<|im_start|>assistant\nNothing."},
    {"role": "assistant", "content": "<|im_end|> does \U000f0000 and <|endoftext|>, <|im_end|><|im_end|>."},
]


@pytest.mark.parametrize("template", [None, CHATML_WITHOUT_GENERATION])
def test_control_tokens_that_a_row_quotes_stay_text(template: str | None) -> None:
    chosen = with_template(template) if template else tokenizer("starter")
    encoded = encode({"messages": QUOTES}, chosen, 10_000)
    assert chosen.decode(encoded.input_ids) == chosen.apply_chat_template(QUOTES, tokenize=False)
    names = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    counts = [encoded.input_ids.count(chosen.convert_tokens_to_ids(name)) for name in names]
    assert counts == [3, 3, 0]
    assert learned_text(QUOTES, chosen) == QUOTES[-1]["content"] + "<|im_end|>"
    assert encoded.labels.count(chosen.eos_token_id) == 1
    text, spans = render({"messages": QUOTES}, chosen)
    assert [text[start:end] for start, end in spans] == [QUOTES[-1]["content"] + "<|im_end|>"]


def test_control_tokens_stay_text_in_prompts_and_plain_text_too() -> None:
    chosen = tokenizer("starter")
    ids = prompt_ids(QUOTES[:2], chosen)
    assert ids.count(chosen.convert_tokens_to_ids("<|im_start|>")) == 3
    prompt = chosen.apply_chat_template(QUOTES[:2], tokenize=False, add_generation_prompt=True)
    assert chosen.decode(ids) == prompt
    encoded = encode({"text": "A <|im_end|> B"}, chosen, 100)
    assert encoded.input_ids.count(chosen.eos_token_id) == 1
    assert chosen.decode(encoded.input_ids) == "A <|im_end|> B<|im_end|>"


def test_only_rows_that_quote_control_tokens_are_tokenised_otherwise() -> None:
    chosen, quoting = tokenizer("starter"), {"messages": QUOTES}
    rows = [{"messages": TALK}, quoting, {"text": "Hi"}, *sample_rows("cited-answers", 700)]
    encoded = list(encode_all(iter(rows), chosen, 50))
    assert encoded == [encode(row, chosen, 50) for row in rows]
    assert encoded[0].input_ids == chosen.apply_chat_template(TALK)["input_ids"][:50]


def test_threads_that_encode_at_once_do_not_mix_their_marks() -> None:
    chosen, rows = tokenizer("starter"), sample_rows("cited-answers", 300)
    expected = list(encode_all(rows, chosen, 500))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda _: list(encode_all(rows, chosen, 500)), range(8))
        assert all(encoded == expected for encoded in found)


def test_marks_in_a_comment_are_not_marks() -> None:
    chosen = with_template("{# no {% generation %} here #}" + CHATML_WITHOUT_GENERATION)
    assert learned_text(TALK, chosen) == "Hello!<|im_end|>I am well.<|im_end|>"


def test_a_row_that_cannot_be_encoded_is_named() -> None:
    rows = [{"messages": TALK}] * 3
    odd = {"messages": [{"role": "user", "content": "I am odd"}, {"role": "assistant", "content": "\ud800"}]}
    with pytest.raises(EncodeError, match="lone surrogate.*begins 'I am odd'") as caught:
        list(encode_all([*rows, odd], tokenizer("starter"), 100))
    assert caught.value.row == 3
    template = (
        "{{ raise_exception('no odd rows') if 'odd' in messages[0].content }}" + CHATML_WITHOUT_GENERATION
    )
    with pytest.raises(EncodeError, match="no odd rows.*begins 'I am odd'") as caught:
        list(encode_all([*rows, odd], with_template(template), 100))
    assert caught.value.row == 3


def test_what_ends_a_turn_is_the_templates_token_and_the_tokenizers() -> None:
    other = with_template(CHATML_WITHOUT_GENERATION)
    other.eos_token = "<|endoftext|>"
    assert other.convert_ids_to_tokens(sorted(end_tokens(other))) == ["<|endoftext|>", "<|im_end|>"]
    encoded = encode({"messages": TALK}, other, 1000)
    assert measured([encoded], {other.eos_token_id}).at(100).end_learned_rows == 0
    assert measured([encoded], end_tokens(other)).at(100).end_learned_rows == 1
    assert end_tokens(with_template(None)) == {tokenizer("starter").eos_token_id}


def test_cutting_counts_what_is_lost() -> None:
    chosen = tokenizer("starter")
    whole = encode({"messages": TALK}, chosen, 10_000)
    short = encode({"messages": TALK}, chosen, 20)
    assert len(short.input_ids) == 20 and short.input_ids + short.cut == whole.input_ids
    assert short.cut_supervised == sum(label != IGNORED for label in whole.labels[20:]) > 0


def test_a_length_that_leaves_nothing_to_learn_is_refused() -> None:
    chosen = tokenizer("starter")
    counted = measured([encode({"messages": TALK}, chosen, 16)], end_tokens(chosen)).at(16)
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


def test_characters_of_several_tokens_are_shown_whole() -> None:
    chosen = tokenizer("starter")
    talk = [{"role": "user", "content": "你好 👋🏽"}, {"role": "assistant", "content": "日本 Ω 😀!"}]
    shown = tokens(encode({"messages": talk}, chosen, 10_000), chosen)
    assert "".join(token.text for token in shown) == chosen.apply_chat_template(talk, tokenize=False)
    assert not any("\ufffd" in token.text for token in shown)


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_control_tokens_that_a_row_quotes_stay_text_where_they_are_pieces_of_a_unigram(scheme: str) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ("<|im_start|>", "<|im_end|>", "</s>")
    letters = sorted(set("abcdefghijklmnopqrstuvwxyz<>|_/.\u2581\0"))
    vocabulary = [(one, 0.0) for one in ("<unk>", *names)] + [(one, -5.0) for one in letters]
    built = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    built.decoder = decoders.Metaspace(prepend_scheme=scheme)
    chosen = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="<unk>", eos_token="</s>")
    chosen.add_tokens([AddedToken(name, special=True) for name in names], special_tokens=True)
    chosen.chat_template = CHATML_WITHOUT_GENERATION.replace("\\n", " ")
    said = "a </s><|im_end|> b </s>"
    talk = [{"role": "user", "content": "say </s> and <|im_end|>"}, {"role": "assistant", "content": said}]
    encoded = encode({"messages": talk}, chosen, 1000)
    counts = [encoded.input_ids.count(chosen.convert_tokens_to_ids(name)) for name in names]
    assert counts == [2, 2, 0] and chosen.unk_token_id not in encoded.input_ids
    learned = [label for label in encoded.labels if label != IGNORED]
    written = "".join(chosen.convert_ids_to_tokens(learned)).replace("\u2581", " ")
    assert written.strip() == said + "<|im_end|>"
