"""What a client makes of its earlier attempts at an update, whose fate it does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.conversation import Pause
from bftfs.credentials import NOBODY
from bftfs.limits import SECOND_US
from bftfs.query_update.client import EarlierAttempt, QueryUpdateClient
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, logical_timestamp
from bftfs.query_update.messages import Status, Update, UpdateReply, Verdict
from bftfs.query_update.replica import Replica
from bftfs.server.step import Ready, Sender
from bftfs.simulation.deployment import client_named
from bftfs.thresholds import QueryUpdateThresholds
from tests.builders import USER
from tests.seams.world import World
from tests.unit.query_update.harness import Cluster, counter_id, honest

A = counter_id(1)


def at(time_us: int) -> LogicalTimestamp:
    return logical_timestamp(
        time_us=time_us, barrier=False, client=client_named("client"), digest=bytes(32)
    )


@pytest.mark.parametrize(
    ("base", "kept"),
    [
        (
            Candidate(ZERO, ZERO),
            True,
        ),  # servers that are not believed now have told of what is later
        (Candidate(at(4), ZERO), True),
        (Candidate(at(5), at(4)), True),  # nothing has happened since
        (Candidate(at(6), at(5)), False),  # another update of the same version
        (Candidate(at(6), at(4)), False),  # chains ascend
        (Candidate(at(8), at(7)), False),
    ],
)
def test_an_attempt_is_not_given_up_for_what_is_older(base: Candidate, kept: bool) -> None:
    """Otherwise the client tries again when its update has taken effect, and is told EEXIST."""
    world = World()
    user = world.user("user")
    client: Any = user.objects

    async def chained(*_: Any) -> tuple[Verdict, bytes]:
        await Pause(1)
        return Verdict.DEAD, b""

    client.repairs.chained = chained
    attempt = EarlierAttempt(at(7), (at(5),), b"")
    update: Any = SimpleNamespace(earlier=[attempt], names=(bytes(16),), method=None)
    observed: Any = SimpleNamespace(classification=SimpleNamespace(object_candidate=base))
    assert user.run(QueryUpdateClient._effect(client, update, [observed])) is None
    assert (attempt in update.earlier) is kept


@pytest.mark.parametrize(
    ("base", "kept"),
    [
        (Candidate(at(8), at(6)), False),  # there is nothing between the two
        (Candidate(at(9), at(8)), True),  # it may be below the earlier one
    ],
)
def test_an_attempt_of_which_servers_have_collected_all_is_judged_by_the_latest_version(
    base: Candidate, kept: bool
) -> None:
    client: Any = SimpleNamespace(repairs=SimpleNamespace(chained=knows_nothing))
    attempt = EarlierAttempt(at(7), (at(5),), b"")
    observed: Any = SimpleNamespace(classification=SimpleNamespace(object_candidate=base))
    update: Any = SimpleNamespace(names=(bytes(16),))
    judging = QueryUpdateClient._verdict(client, update, attempt, [observed])
    verdict, _ = World().user("user").run(judging)
    assert verdict is (Verdict.UNKNOWN if kept else Verdict.DEAD)


async def knows_nothing(*_: Any) -> tuple[Verdict, bytes]:
    await Pause(1)
    return Verdict.UNKNOWN, b""


def overdrawn(step: Any, view: Any, sender: Sender, message: Any, now_us: int) -> Ready:
    """A server that waits for older updates of every client."""
    if not isinstance(message, Update):
        return honest(step, view, sender, message, now_us)
    row = Replica(view, A).row
    told = (row.history,), (row.authenticator,), (0,) * 6
    return Ready(UpdateReply(Status.TOO_MANY, *told))


def test_an_attempt_that_nothing_has_changed_is_sent_again() -> None:
    """It is one attempt for a while, however often it is made: few have to be remembered."""
    cluster = Cluster()
    client = cluster.client("X")
    increment = client.qu.update
    client.run(increment((A,), "counter.increment", Increment(), USER))
    for node in cluster.nodes:
        node.behaviour = overdrawn
    cluster.sent.clear()
    outcome = client.start(increment((A,), "counter.increment", Increment(), USER))

    def tries(duration_us: int) -> tuple[int, int]:
        """How many requests there were by then, and how many different ones."""
        until_us = cluster.now_us + duration_us
        cluster.run(lambda: cluster.now_us >= until_us, within_us=2 * duration_us)
        requests = [each.conditioned for _, _, each in cluster.sent if isinstance(each, Update)]
        return len(requests), len(set(requests))

    made, different = tries(60 * SECOND_US)
    assert made > 500
    assert different == 1
    assert len(client.qu.repairs.own) == 1
    assert tries(600 * SECOND_US)[1] == 9
    for node in cluster.nodes:
        node.behaviour = honest
    cluster.run(lambda: outcome.done)
    assert outcome.value().answer.value == 2
    assert not client.qu.repairs.own


@pytest.mark.parametrize("t", [0, 1])
def test_a_version_is_superseded_by_a_copy(t: int) -> None:
    """Also where a single server is a quorum, and no fewer can show it."""
    cluster = Cluster(QueryUpdateThresholds.smallest(t=t, b=t))
    client = cluster.client("X")
    made = client.run(client.qu.update((A,), "counter.increment", Increment(), USER))
    assert client.run(client.qu.repairs.supersede(A, made.timestamp, NOBODY))
    found = client.run(client.qu.query((A,), "counter.fetch", Fetch(), USER))
    assert found.timestamp > made.timestamp
    assert found.answer.value == 1
    client.run(client.qu.update((A,), "counter.increment", Increment(), USER))
    assert len(cluster.sent) < 150
