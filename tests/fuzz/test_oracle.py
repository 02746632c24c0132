"""The oracle and the fuzzer can fail: planted bugs are found, each by its part of the oracle."""

from __future__ import annotations

import gc
import re
from random import Random
from typing import Any

import pytest

from bftfs.errors import MalformedMessage
from bftfs.limits import NODES
from bftfs.query_update import history
from bftfs.query_update.history import parse_history
from bftfs.wire import channel
from tests.fuzz.corpus import minimal
from tests.fuzz.mutation import Campaign
from tests.fuzz.target import Finding, Target, judge
from tests.fuzz.targets import all_targets
from tests.fuzz.tracing import PROJECT, Tracer


def _find(target: Target, *, most: int = 20_000) -> Finding:
    """What fuzzing the target finds: within 1,000 inputs or 5,000, as it happens."""
    campaign = Campaign(target, Random(7))
    try:
        campaign.start(target.seeds())
        while campaign.executions < most:
            campaign.step()
    except Finding as found:
        return found
    raise AssertionError(f"{campaign.executions} inputs, and the planted bug is not found")


def test_a_decoder_that_raises_what_it_does_not_declare_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = history.parse_candidates

    def careless(encoded: bytes, *, limit: int) -> object:
        if encoded[:1] == b"\x7f":
            raise IndexError("planted")
        return original(encoded, limit=limit)

    monkeypatch.setattr(history, "parse_candidates", careless)
    found = _find(all_targets()["histories"])
    assert "IndexError: planted" in found.what


def test_a_parser_that_believes_a_length_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = channel.FrameReader._length

    def credulous(self: channel.FrameReader, prefix: memoryview) -> int:
        length = original(self, prefix)
        bytearray(length)
        return length

    monkeypatch.setattr(channel.FrameReader, "_length", credulous)
    found = _find(all_targets()["frames"])
    assert "bytes of memory" in found.what


def test_a_loop_without_end_is_found() -> None:
    def endless(data: bytes) -> None:
        while data[:1] == b"\xff":
            parse_history(b"")

    target = Target("endless", endless, seeds=lambda: (b"\xfe",))
    assert "lines of the product" in _find(target).what


def test_a_handler_of_all_exceptions_does_not_hide_too_much_work() -> None:
    def forgiving(data: bytes) -> None:
        try:
            while True:
                parse_history(b"")
        except Exception:
            return

    with pytest.raises(Finding, match="lines of the product"):
        judge(Target("forgiving", forgiving), b"")


def test_a_regular_expression_that_tries_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of the product runs meanwhile."""
    monkeypatch.setattr("tests.fuzz.target.PROCESSOR_S", 0.2)
    times = re.compile(r"(?:(\d+|an?) ?([a-z]+) ?)+ago")

    def parse(data: bytes) -> None:
        times.fullmatch(data.decode("ascii"))

    assert judge(Target("times", parse), b"2 hours ago")
    with pytest.raises(Finding, match="processor time"):
        judge(Target("times", parse), b"a" * 80 + b"!")


def test_declared_errors_and_nothing_else_are_no_finding() -> None:
    def refuse(data: bytes) -> None:
        parse_history(data + b"\1")

    assert judge(Target("strict", refuse, (MalformedMessage,)), b"").work > 0
    with pytest.raises(Finding, match="MalformedMessage"):
        judge(Target("strict", refuse), b"")


def test_work_is_the_same_in_every_run() -> None:
    target = all_targets()["history-sets"]
    for data in target.seeds():
        judge(target, data)  # from now on the small sets of nodes are kept
        parse_history.__globals__["_parsed"].clear()
        first = judge(target, data)
        parse_history.__globals__["_parsed"].clear()
        assert judge(target, data).work == first.work


def test_garbage_of_earlier_runs_is_no_work() -> None:
    source = "def planted():\n    try:\n        yield\n    finally:\n        pass\n"
    scope: dict[str, Any] = {}
    exec(compile(source, str(PROJECT / "bftfs" / "planted.py"), "exec"), scope)
    for _ in range(100):
        begun = scope["planted"]()
        next(begun)
        cycle: list[object] = [begun]
        cycle.append(cycle)
    del begun, cycle
    with Tracer(most_work=1_000) as tracer:
        allocated = [[] for _ in range(100_000)]
    assert allocated
    assert gc.isenabled()
    assert tracer.work == 0


def test_guidance_reaches_what_chance_does_not() -> None:
    """A decoder compares one thing after the other: each is an edge on the way to the next."""
    conditioned = all_targets()["conditioned"]
    guided, blind = Campaign(conditioned, Random(3)), Campaign(conditioned, Random(3))
    guided.start(conditioned.seeds())
    while guided.executions < 400:
        guided.step()
    blind.start(conditioned.seeds())
    while blind.executions < 400:
        blind._run(blind.random.randbytes(blind.random.randrange(200)))
    assert len(guided.edges) > len(blind.edges)


def test_a_minimal_corpus_takes_the_same_edges() -> None:
    target = all_targets()["histories"]
    inputs = [bytes([NODES % 7, number]) for number in range(40)] + list(target.seeds())
    kept, found = minimal(target, inputs)
    assert not found
    assert len(kept) < len(inputs)

    def edges(these: list[bytes]) -> set[int]:
        return {edge for data in these for edge in judge(target, data).edges}

    assert edges(kept) >= edges(list(target.seeds()))
