"""Plumbline from Python: each function does one thing and returns when it is done.

```python
import plumbline

dataset = plumbline.add_data("answers.csv", mapping={"prompt": "question", "answer": "reply"})
print(plumbline.check(dataset).repeated)
run = plumbline.train(plumbline.preset("starter"), dataset)
print(plumbline.evaluate(run).adapter.perplexity)
print(plumbline.adapter(run))
print(plumbline.merge(run))
```

Importing it changes nothing in the host program and takes no time: a function comes from `plumbline.api` when
it is first asked for, and torch when work starts. Functions are named for what they do (`list_runs`, `ask`,
`add_data`): `plumbline.runs`, `plumbline.chat`, `plumbline.data` and `plumbline.export` are packages, and a
function of such a name would be there or not, by what has been imported before.
"""

from typing import TYPE_CHECKING, Any

from plumbline.version import __version__

if TYPE_CHECKING:
    from plumbline.api import (
        Answer,
        Answers,
        Difference,
        EngineCheck,
        Evaluation,
        ImportOptions,
        Measured,
        NearDuplicates,
        Point,
        Preference,
        Recipe,
        Run,
        StudioError,
        adapter,
        add,
        add_data,
        add_hub,
        ask,
        branch,
        check,
        check_against_trl,
        delete,
        evaluate,
        export_adapter,
        forecast,
        get_run,
        list_runs,
        merge,
        metrics,
        preset,
        read_recipe,
        reproduce,
        resume,
        stop,
        submit,
        train,
    )

__all__ = [
    "Answer",
    "Answers",
    "Difference",
    "EngineCheck",
    "Evaluation",
    "ImportOptions",
    "Measured",
    "NearDuplicates",
    "Point",
    "Preference",
    "Recipe",
    "Run",
    "StudioError",
    "__version__",
    "adapter",
    "add",
    "add_data",
    "add_hub",
    "ask",
    "branch",
    "check",
    "check_against_trl",
    "delete",
    "evaluate",
    "export_adapter",
    "forecast",
    "get_run",
    "list_runs",
    "merge",
    "metrics",
    "preset",
    "read_recipe",
    "reproduce",
    "resume",
    "stop",
    "submit",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'plumbline' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("plumbline.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
