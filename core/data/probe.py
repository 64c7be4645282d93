"""Try a chat template on three short conversations, in a child process with limits.

Templates come with models, from strangers, and are programs: one may fail, loop, or fill the memory.
None is rendered in this process before `check_template` has let it pass.
"""

import json
import os
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.errors import StudioError
from core.home import assets

SECONDS = 2
MEMORY = 512 * 1024**2
CHARACTERS = 1_000_000  # far more than any system prompt
START_SECONDS = 60  # for the imports, before the template is touched
FIX = "Choose another base model, or mend its chat template."

ANSWERS = ("The sky is blue, as a rule.", "At dusk it turns red.")
_ONE = [{"role": "user", "content": "What colour is it?"}, {"role": "assistant", "content": ANSWERS[0]}]
_TWO = [*_ONE, {"role": "user", "content": "And later?"}, {"role": "assistant", "content": ANSWERS[1]}]
_SYSTEM = [{"role": "system", "content": "Be brief."}, *_ONE]
_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "It."}}},
    },
}
_ROOT = Path(__file__).resolve().parent.parent.parent
# What a Python needs to start; tokens and keys stay here.
_ENVIRONMENT = ("PATH", "HOME", "SYSTEMROOT", "LD_LIBRARY_PATH", "TEMP", "TMP", "TMPDIR", "HF_HOME")


def check_template(tokenizer: Any, tools: bool = False) -> str:
    """The tokenizer's chat template, once it has shown that it can be rendered.

    :param tools: the template for conversations with tools, where a model has one of its own
    :raises StudioError: when there is none, or it fails, loops, explodes or drops the assistant
    """
    if not tokenizer.chat_template:
        raise StudioError(
            "model.base",
            "has no chat template",
            "Choose an instruction-tuned model, or a dataset of plain text.",
        )
    try:
        template = tokenizer.get_chat_template(tools=[_TOOL] if tools else None)
    except ValueError as error:
        raise StudioError("chat template", f"is not one but several: {error}"[:300], FIX) from error
    if template != _starter_template():
        named = isinstance(tokenizer.chat_template, dict)
        problem = _problem(template, json.dumps(tokenizer.special_tokens_map), tools and named)
        if problem is not None:
            raise StudioError("chat template", problem, FIX)
    return template


@lru_cache(maxsize=1)
def _starter_template() -> str:
    return (assets() / "starter" / "chat_template.jinja").read_text(encoding="utf-8")


@lru_cache(maxsize=64)
def _problem(template: str, special_tokens: str, tools: bool) -> str | None:
    """What is wrong with the template, or None.

    :raises StudioError: when time ran out; on a busy machine that says nothing for good, so it is not kept
    """
    task = json.dumps({"template": template, "special_tokens": json.loads(special_tokens), "tools": tools})
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-m", "core.data.probe"],
        cwd=_ROOT,
        env={**environment, "PYTHONPATH": str(_ROOT), "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    ) as child:
        try:
            return _verdict(child, task)
        finally:
            child.kill()


def _verdict(child: "subprocess.Popen[str]", task: str) -> str | None:
    assert child.stdout is not None
    alarm = threading.Timer(START_SECONDS, child.kill)
    alarm.start()
    ready = child.stdout.readline() == "ready\n"
    alarm.cancel()
    if not ready:
        raise StudioError("chat template", "could not be checked: the process for it did not start")
    try:
        answer = child.communicate(task, timeout=SECONDS)[0]
    except subprocess.TimeoutExpired:
        raise StudioError(
            "chat template", f"did not finish three short conversations in {SECONDS} seconds", FIX
        ) from None
    try:
        return json.loads(answer)["problem"]
    except ValueError:
        return f"crashed the process that tried it (code {child.returncode})"


def main() -> None:
    """The child: says when it is ready, reads one task, answers with one line."""
    from transformers.utils import chat_template_utils

    chat_template_utils.render_jinja_template([_ONE], chat_template="{{ messages }}")  # all is imported
    print("ready", flush=True)
    task = json.loads(sys.stdin.read())
    _limit()
    try:
        problem = _try(task, chat_template_utils.render_jinja_template)
    except MemoryError:
        problem = f"needs more than {MEMORY // 1024**2} MB for a short conversation"
    except Exception as error:
        problem = _explained(error)
    print(json.dumps({"problem": problem}), flush=True)


def _limit() -> None:
    """Memory above what the imports took; processor time in case nobody is left to stop us."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, pages * resource.getpagesize() + MEMORY)
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + SECONDS + 2)
    except (ImportError, OSError):
        return  # not on this system: the time limit holds


def _lower(which: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _try(task: dict[str, Any], render: Any) -> str | None:
    def written(messages: list[dict[str, str]]) -> str:
        texts, _ = render(
            [messages],
            chat_template=task["template"],
            tools=[_TOOL] if task["tools"] else None,
            **task["special_tokens"],
        )
        return texts[0]

    for messages in (_ONE, _TWO):
        text = written(messages)
        if len(text) > CHARACTERS:
            return f"writes {len(text):,} characters for a short conversation"
        for answer in (message["content"] for message in messages if message["role"] == "assistant"):
            if text.count(answer) != 1:
                return f"{'repeats' if answer in text else 'drops'} what the assistant says"
    try:
        written(_SYSTEM)
    except MemoryError:
        raise
    except Exception:
        return None  # a template may refuse a system message, and says so when a row has one
    return None


def _explained(error: Exception) -> str:
    """One sentence with the template's line, where the error knows it."""
    import traceback

    line = getattr(error, "lineno", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename in ("<template>", "<unknown>"):
            line = frame.lineno
    said = str(error).strip().rstrip(".") or type(error).__name__
    where = f"fails in line {line}" if line else "fails"
    return f"{where}: {said}"[:300]


if __name__ == "__main__":
    main()
