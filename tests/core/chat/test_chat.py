"""Chat: the base pane is the base, the adapter pane is the adapter, and both stop when told."""

import threading
from collections.abc import Iterator

import pytest

from plumbline.chat import session
from plumbline.chat.session import Generation
from plumbline.data.tokens.encode import continued_ids, encode, prompt_ids
from plumbline.errors import StudioError
from plumbline.evaluation.generate import Task, answers
from plumbline.models import load
from plumbline.store import runs
from tests.finished import Finished

GREEDY = Generation(max_new_tokens=12, temperature=0, top_p=1, top_k=0, repetition_penalty=1)


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    session.close()


def both(prompt: str) -> dict[str, Task | str]:
    return {side: Task([{"role": "user", "content": prompt}], "") for side in session.SIDES}


def ask(finished: Finished, prompt: str, settings: Generation = GREEDY) -> dict[str, str]:
    *_, last = session.answer(finished.run_id, both(prompt), settings, threading.Event())
    return {side: said.text for side, said in last.items()}


def test_each_pane_is_answered_by_the_model_it_names(finished: Finished) -> None:
    ask_of_row = session.examples(finished.run_id).asks[0]
    assert isinstance(ask_of_row, Task) and len(ask_of_row.messages) == 1
    prompt = ask_of_row.messages[0]["content"]
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
    seen = list(session.answer(finished.run_id, both("Tell me a story."), GREEDY, threading.Event()))
    assert len(seen) == 12
    lengths = [len(step["base"].text) for step in seen]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]


def test_stop_ends_the_answer_and_frees_the_model(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PATIENCE", 0.01)
    stop = threading.Event()
    asked = both("Tell me a story.")
    stream = session.answer(finished.run_id, asked, Generation(max_new_tokens=200), stop)
    next(stream)
    with pytest.raises(StudioError, match="is writing another answer"):
        next(session.answer(finished.run_id, asked, GREEDY, threading.Event()))
    stop.set()
    (last,) = stream
    assert {said.note for said in last.values()} == {"stopped"}
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
    with pytest.raises(StudioError, match="the model has room for"):
        ask(finished, "word " * 3000)


def test_an_answer_that_the_limit_ended_says_so(finished: Finished) -> None:
    *_, last = session.answer(finished.run_id, both("Tell me a story."), GREEDY, threading.Event())
    assert last["base"].note == "cut at 12 tokens"


@pytest.mark.parametrize("seed", [2**70, -1, None, float("nan")])
def test_a_seed_that_no_generator_takes_is_refused_with_its_range(seed: int) -> None:
    problems = Generation(seed=seed).problems()
    assert problems == {"seed": "must be 0 to 4,294,967,295"}


def test_a_base_without_a_limit_of_places_is_answered(finished: Finished) -> None:
    chat = session.opened(finished.run_id)
    limit = chat.model.config.max_position_embeddings
    del chat.model.config.max_position_embeddings
    try:
        assert ask(finished, "Hello!")["base"]
    finally:
        chat.model.config.max_position_embeddings = limit


def test_a_plain_text_is_continued_as_it_was_trained(finished: Finished) -> None:
    tokenizer = load.tokenizer("starter")
    begun = encode({"text": "Once upon a time"}, tokenizer, 64).input_ids[:-1]  # without its end
    assert continued_ids("Once upon a time", tokenizer) == begun
    texts: dict[str, Task | str] = {side: "Once upon a time" for side in session.SIDES}
    *_, last = session.answer(finished.run_id, texts, GREEDY, threading.Event())
    base = load.base_model(runs.recipe(finished.run_id)).eval()
    assert last["base"].text == answers(base, tokenizer, [begun], 12, 1)[0].text


def test_an_adapter_that_is_gone_is_named(finished: Finished) -> None:
    folder = finished.folder / "artifact"
    folder.rename(finished.folder / "aside")
    try:
        with pytest.raises(StudioError, match="its adapter is no longer there. Put runs/"):
            session.opened(finished.run_id)
    finally:
        (finished.folder / "aside").rename(folder)


def test_asking_a_run_that_was_deleted_leaves_no_folder(finished: Finished) -> None:
    with pytest.raises(StudioError, match="run 99: does not exist"):
        session.opened(99)
    assert not (finished.home / "runs" / "99").exists()
