"""Writes down what principals say to each other, so that a person can check it by eye.

A transcript has one line for each message, or for messages alike that are sent at one moment.
Timestamps are shown as in [Q/U Table 4.1]: ⟨time, barrier flag⟩ and the client, with the times of
the transcript counted from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby, pairwise
from textwrap import dedent
from typing import Any, NamedTuple

from bftfs.asking.refusal import Refused
from bftfs.identifiers import ClientId
from bftfs.query_update import messages as qu
from bftfs.query_update.counter import counter_types
from bftfs.query_update.history import (
    ConditionedKind,
    ObjectHistorySet,
    client_of,
    decode_conditioned,
    is_barrier,
    parse_history,
    time_of,
)
from bftfs.read_write import messages as rw
from bftfs.read_write.timestamp import BlockTimestamp
from bftfs.simulation.world import World
from tests.builders import Route, RoutedNetwork

_TIME = re.compile(r"\{(\d+)\}")  # a time, before it is counted


class _Line(NamedTuple):
    at_us: int
    source: str
    target: str
    text: str
    lost: bool


class Transcript:
    """What is said on a network, from now on."""

    def __init__(
        self, world: World, network: RoutedNetwork, names: dict[bytes, str], *, title: str
    ) -> None:
        """`names` of objects and of clients; `title` says what a reader should look at."""
        self._title = dedent(title).strip()
        self._names = names
        self._parts: list[Any] = []  # lines, and what was said between them
        began_us = world.now_us
        self._versions: set[BlockTimestamp] = set()
        self.way: Route = lambda *_: 100  # every message takes as long

        def route(source: Any, target: Any, message: Any) -> int | None:
            delay_us = self.way(source, target, message)
            line = _Line(
                world.now_us - began_us,
                self._principal(source),
                self._principal(target),
                self._told(message),
                delay_us is None,
            )
            self._parts.append(line)
            return delay_us

        network.route = route

    def say(self, text: str) -> None:
        """A line of its own."""
        self._parts.append(text)

    def text(self) -> str:
        """All of it."""
        lines = [self._title]
        for is_said, group in groupby(self._parts, key=lambda part: isinstance(part, str)):
            parts = list(group)
            lines += ["", *parts, ""] if is_said else self._table(parts)
        text = "\n".join(line.rstrip() for line in lines).rstrip() + "\n"
        times = sorted({int(time) for time in _TIME.findall(text)} - {0})
        rank = {0: 0} | {time: number for number, time in enumerate(times, start=1)}
        return _TIME.sub(lambda found: str(rank[int(found.group(1))]), text)

    def _table(self, lines: list[_Line]) -> Iterable[str]:
        """Messages alike, at one moment, to many or from many, are one line."""
        rows: list[tuple[int, list[str], list[str], str, bool]] = []
        for line in sorted(lines, key=lambda line: line.at_us):
            if rows:
                at_us, sources, targets, text, lost = rows[-1]
                if (at_us, text, lost) == (line.at_us, line.text, line.lost):
                    if sources == [line.source] and line.target not in targets:
                        targets.append(line.target)
                        continue
                    if targets == [line.target] and line.source not in sources:
                        sources.append(line.source)
                        continue
            rows.append((line.at_us, [line.source], [line.target], line.text, line.lost))
        for at_us, sources, targets, text, lost in rows:
            way = f"{_servers(sources)} → {_servers(targets)}"
            yield f"{at_us:>9} µs  {way:<16}  {text}{'   (lost)' if lost else ''}"

    # --- names -------------------------------------------------------------------------------

    def _principal(self, endpoint: Any) -> str:
        kind, name = endpoint
        if kind == "node":
            return f"s{name}"
        return self._names.get(name, name) if isinstance(name, bytes) else name

    def _name(self, identifier: bytes) -> str:
        return self._names.get(identifier, identifier.hex()[:8])

    def stamp(self, timestamp: bytes) -> str:
        """A logical timestamp of Query/Update."""
        time_us, flag = time_of(timestamp), int(is_barrier(timestamp))
        author = f" {self._name(client_of(timestamp))}" if time_us else ""
        return f"⟨{{{time_us}}},{flag}⟩{author}"

    def block_stamp(self, timestamp: BlockTimestamp) -> str:
        """A timestamp of a block's version."""
        return f"⟨{{{timestamp.time}}}⟩ {self._name(ClientId(timestamp.client))}"

    # --- messages ----------------------------------------------------------------------------

    def _told(self, message: Any) -> str:
        tell: Callable[[Any], str] | None = getattr(self, f"_{type(message).__name__}", None)
        return type(message).__name__ if tell is None else tell(message)

    def _history(self, encoded: bytes) -> str:
        history = parse_history(encoded)
        copies = {each.timestamp for each in history.candidates if each.copy}
        shown = ["⟨0,0⟩"] if history.initial else []
        for candidate in history.candidates:
            kind = " copy" if candidate.timestamp in copies else ""
            shown.append(self.stamp(candidate.timestamp) + kind)
        return ", ".join(shown)

    def _sets(self, sets: Iterable[ObjectHistorySet]) -> str:
        shown = []
        for each in sets:
            groups = [
                f"{_servers([f's{node}' for node in group.nodes])}: {self._history(group.history)}"
                for group in each.groups
            ]
            shown.append(f"{self._name(each.object)} of {'; '.join(groups) or 'nobody: ⟨0,0⟩'}")
        return " | ".join(shown)

    def _Query(self, message: qu.Query) -> str:  # noqa: N802
        names = " ".join(map(self._name, message.objects))
        return f"QUERY {message.method or 'histories'} {names}"

    def _QueryReply(self, message: qu.QueryReply) -> str:  # noqa: N802
        answer = ""
        if message.answered:
            answer = f"answer {_count(message.answer)}; "
        return answer + " | ".join(map(self._history, message.histories))

    def _Update(self, message: qu.Update) -> str:  # noqa: N802
        conditioned = decode_conditioned(message.conditioned)
        what = conditioned.kind.name
        if conditioned.kind is ConditionedKind.METHOD:
            assert conditioned.operation is not None
            what = conditioned.operation.method
        return f"UPDATE {what}, on {self._sets(conditioned.sets)}"

    def _UpdateReply(self, message: qu.UpdateReply) -> str:  # noqa: N802
        histories = " | ".join(map(self._history, message.histories))
        answer = ""
        if message.answer:
            answer = f", answer {_count(message.answer)}"
        line = f", {message.contenders} ahead in line" if message.contenders else ""
        return f"{message.status.name}{answer}{line}; {histories}"

    def _InlineUpdate(self, message: qu.InlineUpdate) -> str:  # noqa: N802
        return f"INLINE UPDATE of {self._name(message.author)}, {self._sets((message.evidence,))}"

    def _InlineBarrier(self, message: qu.InlineBarrier) -> str:  # noqa: N802
        return f"INLINE BARRIER, {self._sets((message.evidence,))}"

    def _FetchReply(self, message: qu.FetchReply) -> str:  # noqa: N802
        return "FETCHED" if message.conditioned else "FETCHED NOTHING"

    def _FetchRequest(self, message: qu.FetchRequest) -> str:  # noqa: N802
        return f"FETCH {self.stamp(message.timestamp)}"

    def _SyncRequest(self, message: qu.SyncRequest) -> str:  # noqa: N802
        return f"SYNC {self._name(message.object)} at {self.stamp(message.version)}" + (
            "" if message.whole else ", its digest"
        )

    def _SyncReply(self, message: qu.SyncReply) -> str:  # noqa: N802
        return f"SYNC {message.found.name}"

    def _Refused(self, message: Refused) -> str:  # noqa: N802
        return f"REFUSED {message.reason}"

    def _TimeRequest(self, _message: rw.TimeRequest) -> str:  # noqa: N802
        return "TIME_REQUEST"

    def _TimeReply(self, message: rw.TimeReply) -> str:  # noqa: N802
        return "TIME_RESPONSE " + ", ".join(f"⟨{{{time}}}⟩" for time in message.times)

    def _WriteRequest(self, message: rw.WriteRequest) -> str:  # noqa: N802
        vouched = f", {len(message.vouchers)} vouchers" if message.vouchers else ""
        return f"WRITE {self.block_stamp(message.timestamp)}, its fragment{vouched}"

    def _WriteReply(self, _message: rw.WriteReply) -> str:  # noqa: N802
        return "WRITE_RESPONSE"

    def _ReadRequest(self, message: rw.ReadRequest) -> str:  # noqa: N802
        what = "READ_LATEST"
        if message.before is not None:
            how = "before" if message.before in self._versions else "up to"
            what = f"READ_PREV {how} {self.block_stamp(message.before)}"
        return what + (", with data" if message.want_data else "")

    def _ReadReply(self, message: rw.ReadReply) -> str:  # noqa: N802
        self._versions.update(each.timestamp for each in message.versions)
        versions = [
            self.block_stamp(each.timestamp) + (" verified" if each.verified else "")
            for each in message.versions
        ]
        below = {rw.Below.ORIGIN: "⟨0⟩", rw.Below.MORE: "more", rw.Below.COLLECTED: "collected"}
        data = "; the first's fragment" if message.cross_checksum else ""
        return "READ_RESPONSE " + ", ".join([*versions, below[message.below]]) + data

    def _VouchRequest(self, message: rw.VouchRequest) -> str:  # noqa: N802
        return f"VOUCH for {self.block_stamp(message.timestamp)}"

    def _VouchReply(self, message: rw.VouchReply) -> str:  # noqa: N802
        return "VOUCHED" if message.authenticator else "NOT HOSTED"


def _count(answer: bytes) -> int:
    types = counter_types()
    method = types.method("counter.fetch")
    assert method is not None
    count: int = types.decode_answer(method, answer).value
    return count


def _servers(names: list[str]) -> str:
    """`s0-s3 s5`; names of clients as they are."""
    if not all(re.fullmatch(r"s\d+", name) for name in names):
        return " ".join(names)
    numbers = sorted(int(name[1:]) for name in names)
    breaks = [at for at, (one, next_) in enumerate(pairwise(numbers), 1) if next_ != one + 1]
    runs = [numbers[start:end] for start, end in pairwise([0, *breaks, len(numbers)])]
    return " ".join(f"s{run[0]}" if len(run) == 1 else f"s{run[0]}-s{run[-1]}" for run in runs)
