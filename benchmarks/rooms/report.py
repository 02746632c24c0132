"""What is written to a file of results, and the tables that are printed."""

import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.rooms.inside import Traced
from benchmarks.rooms.text import COMPLEXITY, Text

Report = dict[str, Any]

# A replica history that a client keeps as its server has sent it, to show it to servers: it tells
# what that one said, and nothing of what the client makes of it.
_EVIDENCE = frozenset({"observation._Entry.known"})

_NODES = {"bare": "nodes that only serve", "full": "nodes with quotas that verify and heal"}


def report(tree: Path, traced: Traced, text: Text) -> Report:
    """All that was counted of one tree."""
    return {"commit": _commit(tree)} | asdict(traced) | {"text": asdict(text)}


def without_functions(complete: Report) -> Report:
    """The same with numbers in place of the names of functions: what a file of results holds."""
    short = dict(complete)
    for part in ("bare", "full", "lies"):
        short[part] = {
            name: figures | {"passed": {file: len(it) for file, it in figures["passed"].items()}}
            for name, figures in complete[part].items()
        }
    return short


def _commit(tree: Path) -> str | None:
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def parts(counted: Report) -> dict[str, dict[str, str]]:
    """The figures to print, by part and name."""
    found = {
        f"Files, functions, moves: {nodes}": {
            name: f"{each['files']} files, {each['functions']} functions, {each['moves']} moves"
            for name, each in counted[part].items()
        }
        for part, nodes in _NODES.items()
    }
    found["Instructions executed by client and nodes together (the latter verify and heal)"] = {
        name: f"{executed}" for name, executed in counted["instructions"].items()
    }
    lies = counted["lies"]
    found["A misbehaving node, followed through the client"] = {
        name: f"{each['files']} files ({len(each['on_arrival'])} on arrival), remembered by "
        + _remembered([each])
        for name, each in lies.items()
    } | {"all of these": _remembered(lies.values())}
    text = counted["text"]
    found["Source of bftfs, nodes and mount"] = {
        name: f"{text[key]['files']} files, {text[key]['lines']} lines, {text[key]['code']} of code"
        for name, key in (("all", "product"), ("without the simulator", "without_simulator"))
    } | {
        f"functions above complexity {COMPLEXITY}": (
            f"{len(text['complex'])} of {text['functions']}"
        ),
        "class names of several modules": f"{len(text['classes'])}",
        "module names that occur more than once": f"{len(text['modules'])}",
    }
    return found


def _remembered(lies: Iterable[dict[str, Any]]) -> str:
    """The classes that remember any of the lies, and the evidence that is kept besides."""
    places = (place.partition(": ") for lie in lies for place in lie["memories"])
    attributes = {f"{Path(file).stem}.{attribute}" for file, _, attribute in places}
    holders = {attribute.rpartition(".")[0] for attribute in attributes - _EVIDENCE}
    evidence = attributes & _EVIDENCE
    return _listed(holders) + (f" (evidence in {_listed(evidence)})" if evidence else "")


def _listed(names: set[str]) -> str:
    return f"{len(names)}: {', '.join(sorted(names))}" if names else "none"


def details(counted: Report) -> Iterator[str]:
    """Every file that was passed with its functions, and every name that is counted."""
    for part in ("bare", "lies"):
        for name, each in counted[part].items():
            yield f"\n{name}"
            for file, functions in each["passed"].items():
                yield f"    {file}: {', '.join(functions)}"
            for place in each.get("memories", ()):
                yield f"    remembered in {place}"
    text = counted["text"]
    yield f"\nfunctions above complexity {COMPLEXITY}"
    for function, complexity in text["complex"].items():
        yield f"    {complexity} {function}"
    for title, key in (("class names", "classes"), ("module names", "modules")):
        yield f"\n{title} of several modules"
        for name, files in text[key].items():
            yield f"    {name}: {', '.join(files)}"
