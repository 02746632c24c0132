"""What a client makes of its earlier attempts at an update, whose fate it does not know."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bftfs.conversation import Pause
from bftfs.query_update.client import QueryUpdateClient, _Earlier
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, logical_timestamp
from bftfs.query_update.messages import Verdict
from bftfs.simulation.deployment import client_named
from tests.seams.world import World


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
    attempt = _Earlier(at(7), at(5))
    update: Any = SimpleNamespace(earlier=[attempt], names=(), method=None)
    observed: Any = SimpleNamespace(classification=SimpleNamespace(object_candidate=base))
    assert user.run(QueryUpdateClient._effect(client, update, observed)) is None
    assert (attempt in update.earlier) is kept
