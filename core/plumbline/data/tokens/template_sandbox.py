"""Render chat templates in a child process with limits.

Templates come with models, from strangers, and are programs: one may loop or fill the memory on a row
that it does not like, however well it behaves on others. Only the starter's own is rendered in this
process. The child is started once.

Also that child's program.
"""

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from plumbline.errors import StudioError
from plumbline.home import assets
from plumbline.python_process import python_command

SECONDS = 5  # of processor time for one conversation; the slowest real ones take a hundredth of one
MEMORY = 512 * 1024**2
CHARACTERS = 1_000_000  # far more than any system prompt
TIMES = 20  # most that a template writes of each character it is given: it may repeat, as tools are
START_SECONDS = 60  # for the imports, before a template is touched
PATIENCE = 60  # seconds by the clock: a busy machine makes a good template wait
# What a Python needs to start; tokens and keys stay here.
_ENVIRONMENT = ("PATH", "HOME", "SYSTEMROOT", "LD_LIBRARY_PATH", "TEMP", "TMP", "TMPDIR", "HF_HOME")
# transformers keeps one compiled template for all threads, and in it what was marked so far.
_one_at_a_time = threading.Lock()


class Failed(Exception):
    """The template raised; ``line`` is where, 0 when that is not known."""

    def __init__(self, message: str, line: int) -> None:
        self.message, self.line = message, line
        super().__init__(message)


class Exceeded(Exception):
    """The template went past a limit; the text is a phrase that follows its name."""


def written(
    template: str,
    messages: list[dict[str, Any]],
    tools: Any,
    special_tokens: dict[str, Any],
    *,
    prompt: bool = False,
    marks: bool = False,
    day: str = "",
    seconds: int = SECONDS,
) -> tuple[str, list[tuple[int, int]]]:
    """What a template writes and, when asked for, the spans that it marks itself.

    :param special_tokens: the tokenizer's ``special_tokens_map``
    :param day: what the template is told when it asks for the date; empty means today
    :param seconds: of processor time
    :raises Failed: when it raises
    :raises Exceeded: when it takes too long, too much memory, or writes too much
    :raises StudioError: when no child can be started, or it was left waiting for all of `PATIENCE`
    """
    task = {
        "messages": messages,
        "tools": tools or None,
        "special_tokens": special_tokens,
        "prompt": prompt,
        "marks": marks,
        "day": day,
    }
    with _one_at_a_time:
        if template == own_template():
            answer = _answer(template, task)
        else:
            answer = _child.ask(template, task, seconds)
    if "exceeded" in answer:
        raise Exceeded(answer["exceeded"])
    if "said" in answer:
        raise Failed(answer["said"], answer["line"])
    return answer["text"], [(mark[0], mark[1]) for mark in answer["marks"]]


@lru_cache(maxsize=1)
def own_template() -> str:
    """The starter's."""
    return (assets() / "starter" / "chat_template.jinja").read_text(encoding="utf-8")


class _Child:
    """The process; it is started for the first conversation, and anew after one that went past a limit."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._owner = 0
        self._sent: set[str] = set()
        self._deadline = float("inf")
        self._waited_in_vain = False
        atexit.register(self.end)

    def ask(self, template: str, task: dict[str, Any], seconds: int) -> dict[str, Any]:
        """:raises StudioError: when it cannot be started, or does not get to work"""
        process = self._running()
        named = {"template": template} if template not in self._sent else {}
        request = json.dumps({**task, **named, "key": hash(template), "seconds": seconds})
        self._sent.add(template)
        self._waited_in_vain = False
        self._deadline = time.monotonic() + PATIENCE
        try:
            process.stdin.write(request + "\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            line = process.stdout.readline()  # type: ignore[union-attr]
        except OSError:
            line = ""
        finally:
            self._deadline = float("inf")
        with suppress(ValueError):
            answer: dict[str, Any] = json.loads(line)
            if "exceeded" in answer:
                self.end()  # what it holds would count against the next
            return answer
        code = process.wait()
        self.end()
        if self._waited_in_vain and _counts_processor_time():
            # It used less than it may, so this says nothing of the template.
            what = f"could not be tried: the machine was too busy to do it within {PATIENCE} seconds"
            raise StudioError("chat template", what, "Try again when less is running.")
        if -code in _timeouts() or self._waited_in_vain:
            return {"exceeded": f"takes more than {seconds} seconds for one conversation"}
        return {"exceeded": f"crashes the process that renders it (code {code})"}

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self._process, self._owner, self._sent = self._started(), os.getpid(), set()
        return self._process

    def _started(self) -> "subprocess.Popen[str]":
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        process = subprocess.Popen(
            python_command("plumbline.data.tokens.template_sandbox"),
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the one who asked
        )
        self._deadline = time.monotonic() + START_SECONDS
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        ready = process.stdout.readline() == "ready\n"  # type: ignore[union-attr]
        self._deadline = float("inf")
        if not ready:
            process.kill()
            process.communicate()
            raise StudioError("chat template", "could not be tried: the process for it did not start")
        return process

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        while process.poll() is None:
            if time.monotonic() > self._deadline:
                self._waited_in_vain = True
                process.kill()
            time.sleep(0.5)

    def end(self) -> None:
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
        self._process = None


_child = _Child()


def _counts_processor_time() -> bool:
    """Whether this system can end a process by what it has used; by the clock alone otherwise."""
    return importlib.util.find_spec("resource") is not None


def _timeouts() -> tuple[int, ...]:
    """The signals that end a process which takes too long."""
    import signal

    names = ("SIGXCPU", "SIGKILL")
    return tuple(int(getattr(signal, name)) for name in names if name in signal.Signals.__members__)


def main() -> None:
    """The child: says when it is ready, then answers each line with one."""
    from transformers.utils.chat_template_utils import render_jinja_template

    render_jinja_template([[]], chat_template="{{ messages }}")  # all is imported
    limit = _limited()
    templates: dict[int, str] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        template = templates.setdefault(task["key"], task.get("template", ""))
        limit(task["seconds"])
        print(json.dumps(_answer(template, task)), flush=True)


def _answer(template: str, task: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

    try:
        # Templates ask this for the date. Transformers would answer with today's, and takes no other.
        known = _compile_jinja_template(template).globals
        day = datetime.fromisoformat(task["day"]) if task["day"] else datetime.now()
        known["strftime_now"] = day.strftime
        rendered: Any = render_jinja_template(
            conversations=[task["messages"]],
            tools=task["tools"],
            chat_template=template,
            add_generation_prompt=task["prompt"],
            return_assistant_tokens_mask=task["marks"],
            **task["special_tokens"],
        )
        (text,), marked = rendered
        if len(text) > CHARACTERS and len(text) > TIMES * len(json.dumps(task)):
            return {"exceeded": f"writes {len(text):,} characters for one conversation"}
        return {"text": text, "marks": marked[0] if task["marks"] else []}
    except MemoryError:
        return {"exceeded": f"needs more than {MEMORY // 1024**2} MB for one conversation"}
    except Exception as error:
        # Templates raise through jinja, with any message their author chose.
        return {"said": str(error).strip() or type(error).__name__, "line": _line(error)}


def _line(error: Exception) -> int:
    """The template's line, where the error knows it."""
    import traceback

    line = getattr(error, "lineno", None) or 0
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in ("<template>", "<unknown>"):
            line = frame.lineno or line
    return line


def _limited() -> Any:
    """Limit memory to what the imports took and some. :returns: what limits processor time from now on"""
    if not _counts_processor_time():
        return lambda seconds: None  # the time by the clock holds
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    with suppress(OSError):  # systems without /proc
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]

    def limit(seconds: int) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + seconds
        resource.setrlimit(
            resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )

    return limit


def _lower(which: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))
