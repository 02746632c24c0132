"""The counts of `python -m benchmarks.rooms`, on toys whose counts are known and on the product."""

import importlib.util
import json
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.rooms import instructions, text
from benchmarks.rooms.__main__ import main
from benchmarks.rooms.memories import Memory, learned
from benchmarks.rooms.tracing import Figures, Recorder, figures, first

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "rooms"

OUTER = """\
from dataclasses import dataclass

@dataclass
class Box:
    content: int

def twice(inner, numbers):
    boxes = [Box(number) for number in numbers]
    return sum(double(inner, box) for box in boxes)

def double(inner, box):
    return inner.add(box.content, box.content)

async def outermost(inner):
    return await middle(inner)

async def middle(inner):
    return 1 + await inner.waiting()
"""
INNER = """\
from types import coroutine

def add(one, other):
    return _checked(one) + _checked(other)

def _checked(number):
    return int(number)

@coroutine
def pause():
    yield

async def waiting():
    await pause()
    return 1
"""
SIMULATED = """\
def through(inner, number):
    return inner.add(number, 1)
"""


class Toy:
    """Three files, and what is executed in them."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        self.outer = self._module("bftfs/outer.py", OUTER)
        self.inner = self._module("bftfs/deep/inner.py", INNER)
        self.simulated = self._module("bftfs/simulation/simulated.py", SIMULATED)

    def _module(self, file: str, source: str) -> ModuleType:
        path = self.tree / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(f"toy_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look it up
        spec.loader.exec_module(module)
        return module

    def record(self, action: Callable[[], Any]) -> Recorder:
        recorder = Recorder(self.tree, lambda frame: frame.f_code.co_name)
        with recorder.recording():
            action()
        return recorder

    def count(self, action: Callable[[], Any]) -> Figures:
        return figures(self.record(action).calls)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def advance(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Resume a coroutine; True if it waits again."""
    try:
        coroutine.send(None)
    except StopIteration:
        return False
    return True


def test_files_functions_and_moves(toy: Toy) -> None:
    # Comprehensions and the generated __init__ are no functions; sum() is not in the way.
    found = toy.count(lambda: toy.outer.twice(toy.inner, [1, 2, 3]))
    assert found.passed == {
        "bftfs/outer.py": {"twice", "double"},
        "bftfs/deep/inner.py": {"add", "_checked"},
    }
    assert (found.files, found.functions, found.moves) == (2, 4, 3)


def test_the_simulator_is_not_counted(toy: Toy) -> None:
    found = toy.count(lambda: toy.simulated.through(toy.inner, 1))
    assert found.passed == {"bftfs/deep/inner.py": {"add", "_checked"}}
    assert found.moves == 0


def test_only_what_happens_within_a_call(toy: Toy) -> None:
    calls = toy.record(lambda: toy.outer.twice(toy.inner, [1, 2, 3])).calls
    assert figures(calls, first(calls, "double")).moves == 1
    assert figures(calls, first(calls, "add")).passed == {
        "bftfs/deep/inner.py": {"add", "_checked"}
    }


def test_a_first_step_of_coroutines_moves(toy: Toy) -> None:
    coroutine = toy.outer.outermost(toy.inner)
    found = toy.count(lambda: advance(coroutine))
    assert found.passed["bftfs/outer.py"] == {"outermost", "middle"}
    assert found.moves == 1
    coroutine.close()


def test_passing_a_resumption_on_is_nothing(toy: Toy) -> None:
    coroutine = toy.inner.waiting()
    waits_twice = toy.record(lambda: None)

    async def outer() -> None:
        await toy.inner.pause()
        await coroutine

    waiting = outer()
    assert advance(waiting)
    with waits_twice.recording():
        assert advance(waiting)  # `pause` ends, and `waiting` begins and waits
        assert not advance(waiting)
    resumed = [call for call in waits_twice.calls if call.is_resumption]
    assert [call.function for call in resumed if call.is_executed] == ["pause", "waiting", "pause"]
    assert figures(waits_twice.calls).moves == 0


def test_coroutines_can_be_left_out(toy: Toy) -> None:
    coroutine = toy.outer.outermost(toy.inner)
    calls = toy.record(lambda: advance(coroutine)).calls
    assert figures(calls, with_coroutines=False).passed == {}
    coroutine.close()


# --- memories -----------------------------------------------------------------------------------


@dataclass
class Peer:
    silences: int = 0

    __module__ = "bftfs.toy"


@dataclass
class Peers:
    by_node: dict[int, Peer] = field(default_factory=lambda: {node: Peer() for node in range(4)})
    in_order: list[int] = field(default_factory=lambda: [0] * 4)
    convicted: int = 0
    quarrels: set[tuple[int, int]] = field(default_factory=set)
    silent: set[int] = field(default_factory=set)
    replies: int = 0

    __module__ = "bftfs.toy"


def changed(change: Callable[[Peers], None], node: int = 2, *, integers: bool = True) -> list[str]:
    """Where a client is found to remember something of `node` after a change."""
    peers = Peers()
    before = Memory(peers, node, 4, integers=integers)
    change(peers)
    found = learned(before, Memory(peers, node, 4, integers=integers), before)
    return [place.removeprefix("bftfs/toy.py: ") for place in found]


def test_memories_in_any_form_are_found() -> None:
    def of_two(peers: Peers) -> None:
        peers.by_node[2].silences += 1
        peers.in_order[2] = 7
        peers.convicted = 0b0100
        peers.quarrels.add((1, 2))
        peers.silent.add(2)

    names = ("by_node", "convicted", "in_order", "quarrels", "silent")
    assert changed(of_two) == [f"Peers.{name}" for name in names]


def test_what_is_known_of_others_does_not_count() -> None:
    def of_one(peers: Peers) -> None:
        peers.by_node[1].silences = 2
        peers.in_order[1] = 7
        peers.convicted = 0b0010
        peers.quarrels.add((0, 1))
        peers.silent.add(1)
        peers.replies = 100

    assert changed(of_one) == []


def test_a_number_is_a_set_only_where_there_is_no_other_set() -> None:
    def count(peers: Peers) -> None:
        peers.convicted = 4

    assert changed(count) == ["Peers.convicted"]
    assert changed(count, integers=False) == []


# --- source -------------------------------------------------------------------------------------

SOURCE = '''\
"""A module."""

class Thing:
    """A thing."""

    # It does something.
    def does(self, a, b):
        return 1 if a and b else 2
'''


def test_source_is_counted(tmp_path: Path) -> None:
    for file in ("bftfs/one/thing.py", "mount/thing.py", "bftfs/simulation/thing.py"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(SOURCE)
    found = text.count(tmp_path, complexity=2)
    assert found.product == text.Amount(files=3, lines=24, code=9)
    assert found.without_simulator == text.Amount(files=2, lines=16, code=6)
    assert found.functions == 3
    assert found.complex["mount/thing.py: Thing.does"] == 3
    assert found.classes == {"Thing": ["bftfs/one/thing.py", "mount/thing.py"]}
    assert found.modules == {"thing.py": ["bftfs/one/thing.py", "mount/thing.py"]}
    assert text.count(tmp_path, complexity=3).complex == {}


# --- the product --------------------------------------------------------------------------------


def test_the_operations_of_this_tree(tmp_path: Path) -> None:
    file = tmp_path / "counts.json"
    arguments = ["--files", "--json", str(file), "--against", str(RESULTS / "before.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "QueryUpdateServer.step" in result.output
    counted = json.loads(file.read_text())
    assert counted.keys() == json.loads((RESULTS / "before.json").read_text()).keys()
    for each in (*counted["bare"].values(), *counted["full"].values(), *counted["lies"].values()):
        assert each["files"] == len(each["passed"]) > 0
        assert each["functions"] == sum(each["passed"].values())
    for lie in counted["lies"].values():
        assert lie["memories"]
    assert all(executed > 0 for executed in counted["instructions"].values())


def test_instructions_of_the_product_are_counted(tmp_path: Path) -> None:
    def executed(file: str, source: str) -> int:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        names: dict[str, Any] = {}
        exec(compile(source, str(path), "exec"), names)
        counter = instructions.Counter(tmp_path)
        with counter.counting():
            names["work"]()
        return counter.executed

    short = executed("bftfs/short.py", "def work(): return 1")
    assert 0 < short < executed("bftfs/long.py", "def work(): return sum(range(3)) + 1")
    assert executed("bftfs/simulation/short.py", "def work(): return 1") == 0
    assert executed("other/short.py", "def work(): return 1") == 0


def test_a_tree_that_cannot_be_traced(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--tree", str(tmp_path)])
    assert result.exit_code == 1
    assert "could not be traced" in result.output
