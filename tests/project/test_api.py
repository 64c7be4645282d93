"""Plumbline from Python: the example as it is written (with a short recipe), and what is said of mistakes."""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import plumbline
from plumbline import api
from plumbline.chat.session import Generation
from plumbline.config import schema
from plumbline.config.mapping import Mapping
from plumbline.data import rows
from plumbline.errors import StudioError
from plumbline.store import datasets as store
from plumbline.store import runs
from tests import ROOT
from tests.finished import Finished
from tests.hub_server import point_at, running
from tests.runs import recipe

README = ROOT / "README.md"


def example(text: str) -> str:
    """The Python that a text shows."""
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    return code


def answers(folder: Path, rows: int = 30) -> Path:
    """A file with columns of its own; its last row nearly repeats its first."""
    said = [
        f"Where is thing number {n} of all the things that we have?,Thing {n} is here." for n in range(rows)
    ]
    said.append("WHERE is thing number 0 of all the things that we have?,Thing 0 is here.")
    file = folder / "answers.csv"
    file.write_text("\n".join(["question,reply", *said]) + "\n")
    return file


def test_the_python_example_runs_and_is_the_readmes(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code = example(plumbline.__doc__ or "")
    assert code == example(README.read_text())
    short = recipe()
    monkeypatch.setattr(api, "preset", lambda name: short)
    answers(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "the example", "exec"), {})
    repeated, perplexity, adapter, merged = capsys.readouterr().out.splitlines()[-4:]
    assert repeated == "1" and float(perplexity) > 1
    assert (Path(adapter) / "adapter_config.json").exists()
    assert (Path(merged) / "model.safetensors").exists()
    assert runs.recipe(1).data.dataset == "answers"


def test_importing_it_changes_nothing_in_the_host_program() -> None:
    """Not even torch is imported, which would take seconds."""
    program = """
import logging, os, signal, sys, warnings
def state():
    handlers = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    log = logging.getLogger()
    return (dict(os.environ), list(warnings.filters), list(sys.path), handlers, sys.excepthook, os.getcwd(),
            list(log.handlers), log.level, sorted(logging.root.manager.loggerDict))
before, modules = state(), set(sys.modules)
import plumbline
assert state() == before
print(*{name.partition('.')[0] for name in set(sys.modules) - modules})
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    imported = set(ran.stdout.split())
    assert ran.stderr == "" and imported - sys.stdlib_module_names == {"plumbline"}


def test_everything_it_offers_is_there_typed_and_described() -> None:
    """Beside the packages of the same level, which stay what they are."""
    for name in set(plumbline.__all__) - {"__version__"}:
        thing = getattr(plumbline, name)
        assert thing.__doc__, name
        if inspect.isfunction(thing):
            hints = thing.__annotations__
            assert hints.keys() == {*inspect.signature(thing).parameters, "return"}, name
            assert Any not in hints.values(), name
    assert plumbline.data.rows is rows
    assert set(plumbline.__all__) <= set(dir(plumbline))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        plumbline.trian  # noqa: B018


def test_a_dataset_is_added_with_a_mapping_in_any_form(workspace: Path, tmp_path: Path) -> None:
    file = answers(tmp_path)
    written = tmp_path / "mapping.yaml"
    written.write_text("prompt: question\nanswer: reply\n")
    parts = {"prompt": "question", "answer": "reply"}
    for given in (parts, "prompt=question,answer=reply", written, Mapping(**parts)):
        dataset = store.get(api.add_data([file], mapping=given))
        assert Mapping.model_validate_json(dataset["mapping"]) == Mapping(**parts)
    assert store.get(api.add_data(str(file), held_out=file))["held_out_rows"] == 31


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("promt=question", "has no part 'promt'. Parts of exchange: prompt, answer"),
        (
            "prompt={questoin},answer=reply",
            "'questoin', which answers.csv does not have. Its columns: question",
        ),
        ("prompt=question", "does not say which column is answer"),
        ("turns=question,roles.bot=robot", "'robot' is no role"),
        ("kind=talk,turns=question", "has no kind 'talk'"),
        ("kind=text,text=reply,prompt=question", "text has no part 'prompt'"),
        ("helpdesk", "neither a file nor a saved mapping"),
        ({"prompt": 7, "answer": "reply"}, "prompt must be the name of a column"),
    ],
)
def test_a_wrong_mapping_is_told_with_what_it_may_be(
    workspace: Path, tmp_path: Path, given: object, said: str
) -> None:
    with pytest.raises(StudioError) as caught:
        api.add_data(answers(tmp_path), mapping=given)
    assert said in caught.value.text


def test_a_file_that_is_not_there_is_said_to_be_missing(workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(StudioError, match="is not there"):
        api.add_data(tmp_path / "none.csv")
    with pytest.raises(StudioError, match="is a folder"):
        api.add_data([tmp_path])


def test_a_recipes_mapping_and_several_files_are_trained_on(workspace: Path, tmp_path: Path) -> None:
    first = answers(tmp_path)
    second = tmp_path / "more.csv"
    second.write_text(first.read_text())
    chosen = recipe(data={"mapping": {"prompt": "reply", "answer": "question"}})
    (run_id,) = api.add(chosen, [first, second])
    run = runs.get(run_id)
    dataset = store.get(run["dataset_id"])
    assert dataset["rows"] == 62 and next(rows.at(dataset["id"], "train", [0]))["messages"][0][
        "content"
    ].startswith("Thing 0")


def test_a_check_that_fails_is_raised_with_its_reason(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = api.add_data(answers(tmp_path))
    with pytest.raises(StudioError, match="threshold: must be from 0.7 to 1"):
        api.check(dataset, threshold=0.3)
    with pytest.raises(StudioError, match="dataset 99: does not exist"):
        api.check(99)
    (workspace / "datasets" / str(dataset) / "train.jsonl").write_text("not a row\n" * 99)
    with pytest.raises(StudioError, match="check of answers: Internal error"):
        api.check("answers")


def test_a_hub_dataset_is_added(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running() as hub:
        point_at(hub.url, monkeypatch, tmp_path / "cache")
        text = answers(tmp_path).read_bytes()
        hub.add("org/things", {"train.csv": text, "test.csv": text})
        dataset = store.get(
            api.add_hub(
                "org/things", held_out_split="test", mapping={"prompt": "question", "answer": "reply"}
            )
        )
    assert (dataset["name"], dataset["rows"], dataset["held_out_rows"]) == ("things", 31, 31)
    assert json.loads(dataset["origin"])["hub"] == "org/things"


def test_every_import_tells_what_is_done_and_then_the_share(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, float | None]] = []
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 12)
    with running() as hub:
        point_at(hub.url, monkeypatch, tmp_path / "cache")
        hub.add("org/things", {"train.jsonl": file.read_bytes()})
        for add, given in ((api.add_data, file), (api.add_hub, "org/things")):
            told.clear()
            add(given, report=lambda text, share: told.append((text, share)))
            assert any("rows" in text for text, _ in told)
            assert all(share is None or 0 <= share <= 1 for _, share in told)


def test_a_job_that_fails_is_raised_with_its_reason(workspace: Path) -> None:
    with pytest.raises(StudioError, match="train of run 1: .*no answer tokens within 16"):
        api.train(recipe(training={"max_length": 16}))


def test_the_readmes_recipes_are_valid() -> None:
    mixed, whole = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    assert [part.weight for part in schema.loads(mixed).data.parts] == [2, 0.5]
    assert schema.loads(whole).model.base.startswith("meta-llama/")


def test_a_run_is_looked_at_and_asked_from_python(finished: Finished) -> None:
    run = plumbline.get_run(finished.run_id)
    assert run in plumbline.list_runs() and plumbline.list_runs(limit=0) == []
    assert (run.state, run.step, run.total_steps, run.base) == ("completed", 20, 20, "starter")
    points = plumbline.metrics(run.id)
    assert [point.step for point in points if point.eval_loss is not None] == [0, 10, 20]
    assert points[-1].eval_loss == run.eval_loss and points[-1].eval_loss_of == {}
    assert plumbline.adapter(run.id) == finished.folder / "artifact"
    greedy = Generation(max_new_tokens=4, temperature=0)
    answers = plumbline.ask(run.id, "What is the capital of France?", generation=greedy)
    assert answers.base.text and answers.adapter.text and answers.base.note == "cut at 4 tokens"
    with pytest.raises(StudioError, match=f"run {run.id}: is completed, there is nothing to stop"):
        plumbline.stop(run.id)
    with pytest.raises(StudioError, match="run 99: does not exist"):
        plumbline.metrics(99)
    folder = plumbline.submit(run.id, "slurm", {"num_machines": 2, "gpus": 8}, time="1:00:00")
    assert "--nodes=2" in (folder / "job.sh").read_text()
