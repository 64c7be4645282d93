"""Chat: the base pane is the base, the adapter pane is the adapter, and both stop when told."""

import threading
from collections.abc import Iterator

import pytest

from core.chat import session
from core.chat.session import Generation
from core.data.xray import prompt_ids
from core.errors import StudioError
from core.evaluation.generate import answers
from core.models import load
from core.store import runs
from tests.unit.conftest import Finished

GREEDY = Generation(max_new_tokens=12, temperature=0, top_p=1, top_k=0, repetition_penalty=1)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    session.close()


def ask(finished: Finished, prompt: str, settings: Generation = GREEDY) -> dict[str, str]:
    histories = {side: [{"role": "user", "content": prompt}] for side in session.SIDES}
    return list(session.answer(finished.run_id, histories, settings, threading.Event()))[-1]


def test_each_pane_is_answered_by_the_model_it_names(finished: Finished) -> None:
    prompt = session.examples(finished.run_id)[0]
    said = ask(finished, prompt)
    tokenizer = load.tokenizer("starter")
    talk = [prompt_ids([{"role": "user", "content": prompt}], tokenizer)]
    # A base that never saw the adapter.
    untouched = load.base_model(runs.recipe(finished.run_id)).eval()
    assert said["base"] == answers(untouched, tokenizer, talk, 12, 1)[0].text
    tuned = session.opened(finished.run_id).model
    assert said["adapter"] == answers(tuned, tokenizer, talk, 12, 1)[0].text
    assert said["base"] != said["adapter"]


def test_answers_grow_token_by_token(finished: Finished) -> None:
    histories = {side: [{"role": "user", "content": "Tell me a story."}] for side in session.SIDES}
    seen = list(session.answer(finished.run_id, histories, GREEDY, threading.Event()))
    assert len(seen) == 12
    lengths = [len(step["base"]) for step in seen]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_stop_ends_the_answer_and_frees_the_model(finished: Finished) -> None:
    stop = threading.Event()
    histories = {side: [{"role": "user", "content": "Tell me a story."}] for side in session.SIDES}
    stream = session.answer(finished.run_id, histories, Generation(max_new_tokens=200), stop)
    next(stream)
    with pytest.raises(StudioError, match="another answer is being written"):
        next(session.answer(finished.run_id, histories, GREEDY, threading.Event()))
    stop.set()
    assert list(stream) == []
    assert ask(finished, "Hello!")["base"]


def test_sampling_follows_its_seed_and_leaves_the_global_generator_alone(finished: Finished) -> None:
    import torch

    warm = Generation(max_new_tokens=12, temperature=1.0)
    session.opened(finished.run_id)
    before = torch.get_rng_state()
    first = ask(finished, "Tell me a story.", warm)
    assert torch.equal(torch.get_rng_state(), before)
    assert ask(finished, "Tell me a story.", warm) == first
    other = Generation(max_new_tokens=12, temperature=1.0, seed=1)
    assert ask(finished, "Tell me a story.", other) != first


def test_settings_may_be_whole_numbers(finished: Finished) -> None:
    whole = Generation(max_new_tokens=4, temperature=2, top_p=1, top_k=5, repetition_penalty=2)
    assert ask(finished, "Hello!", whole)["base"]


def test_loading_the_chat_model_leaves_the_global_generator_alone(finished: Finished) -> None:
    """A run that trains in another thread must not see its random state move."""
    import torch

    session.opened(finished.run_id)
    session.close()
    before = torch.get_rng_state()
    session.opened(finished.run_id)
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_settings_are_all_named(finished: Finished) -> None:
    with pytest.raises(StudioError) as caught:
        ask(finished, "x", Generation(max_new_tokens=0, temperature=-1, top_p=0))
    for name in ("max_new_tokens", "temperature", "top_p"):
        assert name in caught.value.text


def test_a_conversation_past_the_models_length_is_refused(finished: Finished) -> None:
    with pytest.raises(StudioError, match="too long"):
        ask(finished, "word " * 3000)
