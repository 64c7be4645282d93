"""Figures of how the code is built: ``python -m tests.project.structure`` prints them, `test_structure` holds
them.

Imports count wherever they stand, inside functions too. Paths are module names; tests are not counted.
"""

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from tests import ROOT

ROOTS = (ROOT / "core", ROOT / "studio")
# Imports run down this list; a module of the package itself counts as its lowest floor.
FLOORS = (
    "cli",
    "api",
    "worker",
    "recovery",
    "runs",
    "training",
    "export",
    "chat",
    "evaluation",
    "planner",
    "engine",
    "checkpoints",
    "batches",
    "data",
    "jobs",
    "distributed",
    "models",
    "hub",
    "store",
    "config",
    "base",
)
VAGUE = ("found", "one", "place", "wanted", "told", "said", "given", "held", "kept")  # say nothing of a value
LONGEST_FILE, LARGEST_FOLDER, LONGEST_FUNCTION = 400, 15, 60


@lru_cache
def modules() -> dict[str, Path]:
    """Every module of the two packages by its name."""
    found = {}
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@lru_cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Modules of the packages that a file imports, anywhere in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module in modules():
                    yield module
                elif node.module in modules():
                    yield node.module


@lru_cache
def imports() -> dict[str, set[str]]:
    return {name: set(imported(path)) - {name} for name, path in modules().items()}


def floor(module: str) -> str:
    part = module.split(".")[1] if "." in module else "base"
    return part if part in FLOORS else "base"


def against_the_floors() -> list[str]:
    """Imports that run up; and of core, those of the page."""
    found = []
    for name, others in imports().items():
        for other in others if name.startswith("plumbline.") else ():
            if not other.startswith("plumbline") or FLOORS.index(floor(name)) > FLOORS.index(floor(other)):
                found.append(f"{name} imports {other}")
    return sorted(found)


def circles(folders: bool = False) -> list[list[str]]:
    """Groups of files, or of folders, that import each other (Tarjan's strongly connected components)."""
    graph = imports()
    if folders:
        graph = {}
        for name, others in imports().items():
            here = _folder(name)
            graph.setdefault(here, set()).update({_folder(other) for other in others} - {here})
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in order:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], order[other])
        if lowest[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(graph):
        if node not in order:
            visit(node)
    return groups


def _folder(module: str) -> str:
    """A file beside the folders of a package stands for itself."""
    path = modules()[module]
    return module if path.parent.parent in ROOTS else str(path.parent.relative_to(ROOT))


def long_files() -> dict[str, int]:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    return {name: count for name, count in lines.items() if count > LONGEST_FILE}


def folders() -> dict[str, int]:
    """Python files of each folder, the largest first."""
    counts: dict[str, int] = {}
    for path in modules().values():
        name = str(path.parent.relative_to(ROOT))
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def long_functions() -> dict[str, int]:
    """Functions past 60 lines, the longest first."""
    counts = {}
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or node.lineno) - node.lineno + 1
                if count > LONGEST_FUNCTION:
                    counts[f"{name}.{node.name}"] = count
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def untyped_dicts() -> int:
    """How often ``dict[str, Any]`` stands in the code."""
    return sum(ast.unparse(tree(path)).count("dict[str, Any]") for path in modules().values())


def any_share() -> float:
    """Of the hints of parameters, results and variables, those in which ``Any`` stands."""
    total = vague = 0
    for path in modules().values():
        for node in ast.walk(tree(path)):
            hint = (
                node.annotation
                if isinstance(node, ast.arg | ast.AnnAssign)
                else getattr(node, "returns", None)
            )
            if isinstance(hint, ast.expr):
                total += 1
                vague += any(isinstance(each, ast.Name) and each.id == "Any" for each in ast.walk(hint))
    return vague / total


def vague_names() -> dict[str, int]:
    """How often names that say nothing of what they stand for are bound."""
    counts = dict.fromkeys(VAGUE, 0)
    for path in modules().values():
        for node in ast.walk(tree(path)):
            bound = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                bound = node.id
            if bound in counts:
                counts[bound] += 1
    return counts


def main() -> None:
    rows = [
        ("circles of files", str(len(circles()))),
        ("circles of folders", str(len(circles(folders=True)))),
        ("imports against the floors", str(len(against_the_floors()))),
        ("files past 400 lines", str(len(long_files()))),
        ("largest folder", "{1} files: {0}".format(*next(iter(folders().items())))),
        ("functions past 60 lines", ", ".join(f"{n} ({c})" for n, c in long_functions().items())),
        ("their number", str(len(long_functions()))),
        ("dict[str, Any]", str(untyped_dicts())),
        ("hints with Any", f"{any_share():.1%}"),
        ("names that say nothing", f"{sum(vague_names().values())}: {vague_names()}"),
        ("modules", str(len(modules()))),
    ]
    for label, value in rows:
        print(f"{label:<28} {value}")


if __name__ == "__main__":
    main()
