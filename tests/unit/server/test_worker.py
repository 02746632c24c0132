"""What workers share: a walk that neither crashes nor silent peers make forget what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bftfs import limits
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.conversation import Conversation
from bftfs.engine import Engine
from bftfs.identifiers import NodeId
from bftfs.server.step import Task
from bftfs.server.worker import (
    HealingTally,
    HealingWalk,
    IdleTime,
    Throttle,
    in_chunks,
    passes,
    retry_after_us,
)
from bftfs.storage import MemoryStorage
from bftfs.thresholds import QueryUpdateThresholds

END = b"\xff"
SECOND_US = limits.SECOND_US
QUORUMS = ThresholdQuorums(QueryUpdateThresholds.smallest(t=1, b=1))


class Node:
    """A host whose tasks are stepped at once, in virtual time."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.now_us = limits.SECOND_US
        self.busy = False  # True: a client asks for something all the time
        self.full = False
        self.lost = 0
        self._tasks: list[Task] = []
        self.engine = Engine(
            send=lambda *_: None,
            now_us=lambda: self.now_us,
            monotonic_us=lambda: self.now_us,
            draw=lambda _: 0,
        )

    @property
    def foreground_us(self) -> int:
        return self.now_us if self.busy else 0

    def arrange(self, task: Task) -> None:
        self._tasks.append(task)

    def note_damage(self, _damage: object) -> None:
        raise AssertionError

    def run(self, conversation: Conversation[Any]) -> Any:
        """What the conversation gives."""
        ended: list[tuple[Any, BaseException | None]] = []
        self.engine.start(conversation, lambda *outcome: ended.append(outcome))
        while not ended:
            if self._tasks:
                self.storage.apply(self._tasks.pop(0)(self.storage, self.now_us))
                continue
            deadline_us = self.engine.next_deadline_us()
            assert deadline_us is not None, "it waits for nothing"
            self.now_us = max(self.now_us, deadline_us)
            self.engine.expire()
        while self._tasks:
            self.storage.apply(self._tasks.pop(0)(self.storage, self.now_us))
        result, error = ended[0]
        if error is not None:
            raise error
        return result


def walk(*, rebuilding: bool = True, tally: HealingTally | None = None) -> HealingWalk:
    return HealingWalk(
        b"walk",
        END,
        throttle=Throttle("test", rate_bytes=1 << 30),
        tally=tally or HealingTally(),
        fraction=lambda key: 1.0 if key == END else len(key) / 4,
        rebuilding=rebuilding,
    )


class Counted:
    """Pages of 100 things each, of 400; what the pass says of itself before each one."""

    def __init__(self, tally: HealingTally, node: Node, ends: list[bytes]) -> None:
        self._tally, self._node, self._ends = tally, node, ends
        self.told: list[tuple[float, int | None]] = []

    async def heal(self, _host: Any, _after: bytes) -> tuple[bytes, bool] | None:
        self.told.append((self._tally.progress, self._tally.remaining_us(self._node.now_us)))
        self._node.now_us += SECOND_US
        if not self._ends:
            return None
        self._tally.expect({NodeId(0): 400, NodeId(1): 400, NodeId(2): 1 << 60}, QUORUMS)
        self._tally.has_done(100)
        return self._ends.pop(0), True


def test_progress_counts_what_is_done_whatever_the_names_are() -> None:
    """Nearly all names may be before the first page's end: most things are of one kind."""
    node, tally = Node(), HealingTally()
    way = walk(tally=tally)
    assert tally.progress == 0.0, "a lost store is to be rebuilt: that is not done"
    assert tally.remaining_us(node.now_us) is None
    pages = Counted(tally, node, [b"ddd", b"ddde", b"dddf", END])
    assert node.run(way.one_pass(node, pages.heal))
    shares = [share for share, _ in pages.told]
    assert shares == [0.0, 0.25, 0.5, 0.75]
    lefts = [left for _, left in pages.told]
    assert lefts[0] is None
    assert [round((left or 0) / SECOND_US) for left in lefts[1:]] == [3, 2, 1]
    assert tally.progress == 1.0
    assert tally.remaining_us(node.now_us) == 0


def test_progress_goes_on_where_a_crash_has_stopped_it() -> None:
    node, tally = Node(), HealingTally()
    way = walk(tally=tally)
    assert not node.run(way.one_pass(node, Counted(tally, node, [b"d", b"dd"]).heal))
    assert tally.progress == 0.5, "a lost store is not rebuilt between two passes either"
    again = HealingTally()
    pages = Counted(again, node, [b"ddd", END])
    assert node.run(walk(tally=again).one_pass(node, pages.heal))
    assert [share for share, _ in pages.told] == [0.5, 0.75]
    assert pages.told[0][1] is None, "how fast it goes is not known yet"
    assert round((pages.told[1][1] or 0) / SECOND_US) == 1
    assert again.progress == 1.0
    assert again.whole_us == 0, "this pass has not gone over everything"


def test_a_liar_makes_no_progress_up() -> None:
    tally = HealingTally()
    tally.expect({NodeId(0): 1 << 61, NodeId(1): 40, NodeId(2): 0}, QUORUMS)
    assert tally.total == 40
    tally.expect({NodeId(0): 1 << 61}, QUORUMS)
    assert tally.total == 40, "one may lie"


class Pages:
    """Pages that end at the given keys, with what becomes of each."""

    def __init__(self, outcomes: dict[bytes, tuple[bytes, bool] | None]) -> None:
        self.outcomes = outcomes
        self.asked: list[bytes] = []

    async def heal(self, _host: Any, after: bytes) -> tuple[bytes, bool] | None:
        self.asked.append(after)
        return self.outcomes[after]


WHOLE = {b"": (b"b", True), b"b": (b"d", True), b"d": (END, True)}


def test_a_pass_goes_to_the_end() -> None:
    node, pages, way = Node(), Pages(dict(WHOLE)), walk()
    assert way.complete_until == b""
    assert node.run(way.one_pass(node, pages.heal))
    assert pages.asked == [b"", b"b", b"d"]
    assert way.complete_until == END


def test_what_is_left_behind_makes_a_pass_incomplete() -> None:
    node, pages, way = Node(), Pages(WHOLE | {b"b": (b"d", False)}), walk()
    assert not node.run(way.one_pass(node, pages.heal))
    assert way.complete_until == b"b"  # nothing beyond it may be answered for
    assert pages.asked == [b"", b"b", b"d"]


@pytest.mark.parametrize("again", [lambda way: way, lambda _: walk()], ids=["alive", "restarted"])
def test_a_pass_goes_on_where_silence_stopped_it(
    again: Callable[[HealingWalk], HealingWalk],
) -> None:
    node, way = Node(), walk()
    assert not node.run(way.one_pass(node, Pages(WHOLE | {b"d": None}).heal))
    pages, way = Pages(dict(WHOLE)), again(way)
    assert node.run(way.one_pass(node, pages.heal))
    assert pages.asked == [b"d"]
    assert way.complete_until == END


def test_a_restart_does_not_forget_what_was_left_behind() -> None:
    node = Node()
    assert not node.run(walk().one_pass(node, Pages({b"": (b"b", False), b"b": None}).heal))
    assert not node.run(walk().one_pass(node, Pages(dict(WHOLE)).heal))
    assert node.run(walk().one_pass(node, Pages(dict(WHOLE)).heal))


def test_a_loss_breaks_a_pass_off() -> None:
    node, way = Node(), walk(rebuilding=False)

    async def lose(_host: Any, after: bytes) -> tuple[bytes, bool]:
        node.storage.apply([way.begin_anew()])
        return WHOLE[after]

    assert way.complete_until == END
    assert not node.run(way.one_pass(node, lose))
    assert way.complete_until == b""
    pages = Pages(dict(WHOLE))
    assert node.run(way.one_pass(node, pages.heal))
    assert pages.asked[0] == b""


@pytest.mark.parametrize(("busy", "sizes"), [(True, [1] * 5), (False, [limits.HEAL_AT_ONCE])])
def test_clients_that_are_busy_come_first(busy: bool, sizes: list[int]) -> None:
    node, chunks = Node(), []

    async def work(items: Any) -> int:
        chunks.append(len(items))
        return 0

    items = range(5 if busy else limits.HEAL_AT_ONCE)
    node.busy = busy
    node.run(in_chunks(node, Throttle("test", rate_bytes=1 << 30), items, work))
    assert chunks == sizes


def test_idle_time_is_looked_for_less_and_less_often() -> None:
    node, idle = Node(), IdleTime()
    pauses = []
    node.busy = True
    for _ in range(12):
        before_us = node.now_us
        assert node.run(idle.clients_are_busy(node))
        pauses.append(node.now_us - before_us)
    assert pauses == sorted(pauses)
    assert pauses[0] == limits.VERIFY_IDLE_US
    assert pauses[-1] == 100_000
    node.busy = False
    assert not node.run(idle.clients_are_busy(node))


def test_what_fails_is_tried_again_less_and_less_often() -> None:
    waits = [retry_after_us(failures) for failures in range(40)]
    assert waits == sorted(waits)
    assert waits[0] == limits.VERIFY_RETRY_US
    assert waits[-1] == limits.VERIFY_RETRY_MOST_US


def test_nodes_that_start_together_do_not_compare_together() -> None:
    begun = [_passes_of(NodeId(number)) for number in range(6)]
    assert [first for first, *_ in begun] == [1] * 6  # what they missed before they get at once
    assert len({second for _, second, *_ in begun}) == 6
    again_s, every_s = limits.HEAL_AGAIN_US // SECOND_US, limits.HEAL_EVERY_US // SECOND_US
    assert [[c - b, d - c] for _, b, c, d in begun] == [[again_s, every_s]] * 6


def _passes_of(number: NodeId) -> list[int]:
    """The seconds in which four passes begin; the second one leaves something to be done."""
    node = Node()
    moments: list[int] = []

    async def one_pass(_host: Any) -> bool:
        moments.append(node.now_us // SECOND_US)
        if len(moments) == 4:
            raise EnoughSeen
        return len(moments) != 2

    with pytest.raises(EnoughSeen):
        node.run(passes(node, Throttle("test", rate_bytes=1), one_pass, number, QUORUMS.n))
    return moments


class EnoughSeen(Exception):
    """Ends a conversation that has no end."""
