"""bftfs.credentials and bftfs.server.authority: what a client may claim."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from bftfs import limits
from bftfs.credentials import ALL_RIGHTS, NOBODY, Credentials, Grant
from bftfs.identifiers import NodeId
from bftfs.server.authority import overstepped
from bftfs.server.step import Role, Sender
from bftfs.simulation.deployment import client_named

GRANT = Grant(uids=(1000, 1001), gids=(1000, 27, 1001))


@pytest.mark.parametrize(
    ("claim", "uncovered"),
    [
        (Credentials(1000, 1000), ""),
        (Credentials(1001, 1001, (27, 1000)), ""),
        (Credentials(1000, NOBODY.gid, (NOBODY.gid,)), ""),  # everybody's
        (Credentials(0, 1000), "uid 0"),
        (Credentials(1002, 10), "uid 1002"),
        (Credentials(1000, 10), "gid 10"),
        (Credentials(1000, 0), "gid 0"),
        (Credentials(1000, 1000, (27, 10, 11)), "gid 10"),
        (Credentials(1000, 1000, tuple(range(64))), "gid 0"),
    ],
)
def test_claims(claim: Credentials, uncovered: str) -> None:
    assert GRANT.uncovered(claim) == uncovered
    assert ALL_RIGHTS.uncovered(claim) == ""


def test_without_groups_in_the_grant_there_are_none() -> None:
    grant = Grant(uids=(1000,))
    assert grant.uncovered(Credentials(1000, 1000)) == "gid 1000"
    assert grant.uncovered(Credentials(1000, NOBODY.gid)) == ""
    assert grant.claimable(Credentials(1000, 1000, (4, 20))) == Credentials(1000, NOBODY.gid)


def test_root_may_claim_any_group() -> None:
    grant = Grant(uids=(0, 1000), gids=(1000,))
    root = Credentials(0, 5, (6, 7))
    assert grant.uncovered(root) == ""
    assert grant.claimable(root) == root
    assert grant.uncovered(Credentials(1000, 5)) == "gid 5"


@pytest.mark.parametrize(
    ("known", "claimed"),
    [
        (Credentials(1000, 1000, (27, 1000)), Credentials(1000, 1000, (27, 1000))),
        (Credentials(1000, 1000, (10, 27, 4)), Credentials(1000, 1000, (27,))),
        (Credentials(1000, 10, (4, 27, 1001)), Credentials(1000, 27, (27, 1001))),
        (Credentials(1000, 10, (4,)), Credentials(1000, NOBODY.gid)),
        (Credentials(7, 1000, ()), Credentials(7, 1000)),  # nodes refuse it
    ],
)
def test_a_mount_claims_what_is_covered(known: Credentials, claimed: Credentials) -> None:
    assert GRANT.claimable(known) == claimed
    assert GRANT.uncovered(claimed) in ("", "uid 7")


@pytest.mark.parametrize(
    ("claim", "uncovered", "claimed"),
    [
        (Credentials(0, 0), "uid 0", NOBODY),
        (Credentials(0, 5, (6,)), "uid 0", NOBODY),
        (Credentials(7, 0), "gid 0", Credentials(7, NOBODY.gid)),
        (Credentials(7, 5, (0, 6)), "gid 0", Credentials(7, 5, (6,))),
        (Credentials(7, 5, (6,)), "", Credentials(7, 5, (6,))),
        (NOBODY, "", NOBODY),
    ],
)
def test_root_is_squashed_where_any_other_user_is_covered(
    claim: Credentials, uncovered: str, claimed: Credentials
) -> None:
    grant = Grant(squash_root=True)
    assert grant.uncovered(claim) == uncovered
    assert grant.claimable(claim) == claimed
    assert grant.uncovered(claimed) == ""
    assert grant.allows(claim.uid) == (claim.uid != 0)


def test_root_is_squashed_where_users_are_named() -> None:
    grant = Grant(uids=(1000,), gids=(1000, 0), squash_root=True)
    assert grant.claimable(Credentials(0, 0, (0, 1000))) == NOBODY
    assert grant.uncovered(NOBODY) == ""
    assert grant.uncovered(Credentials(0, 0)) == "uid 0"
    assert grant.uncovered(Credentials(1000, 0)) == ""  # its users may be in root's group
    assert not grant.allows(0)
    assert grant.allows(NOBODY.uid)


GRANTS = [
    Grant(uids, True, gids=gids, squash_root=squash)
    for squash in (False, True)
    for uids in (None, (), (7,), (7, 8), (0, 7), (65534, 8))
    for gids in ((), (5,), (0, 5, 6), (65534,))
    if not (squash and 0 in (uids or ())) and not (gids and uids is None)
]
CLAIMS = [
    Credentials(uid, gid, groups)
    for uid in (0, 7, 8, 9, 65534)
    for gid in (0, 5, 6, 9, 65534)
    for groups in ((), (0,), (5,), (6, 65534))
]


@pytest.mark.parametrize("one", GRANTS)
def test_what_two_grants_allow_is_what_each_of_them_allows(one: Grant) -> None:
    for other in GRANTS:
        both = one.narrowed_by(other)
        for claim in CLAIMS:
            covered = not one.uncovered(claim) and not other.uncovered(claim)
            assert (both.uncovered(claim) == "") == covered, (other, claim)
    assert not one.narrowed_by(replace(one, write=False)).write
    assert not replace(one, write=False).narrowed_by(one).write
    assert one.narrowed_by(one).write


def test_a_request_carries_only_so_many_groups() -> None:
    known = Credentials(1000, 1000, tuple(range(100_000)))
    assert ALL_RIGHTS.claimable(known).groups == known.groups[: limits.GROUPS]
    assert GRANT.claimable(known).groups == (27, 1000, 1001, NOBODY.gid)


def test_what_a_sender_may_ask_for() -> None:
    def asked(grant: Grant, uid: int, *, writes: bool, role: Role = Role.CLIENT) -> tuple[int, str]:
        node = NodeId(1) if role is Role.NODE else None
        sender = Sender(role, client_named("alice"), node, grant)
        refusal = overstepped(sender, Credentials(uid, 1000), writes=writes)
        return (0, "") if refusal is None else (refusal.code, refusal.reason)

    assert asked(GRANT, 1000, writes=True) == (0, "")
    assert asked(GRANT, 5, writes=False) == (errno.EPERM, "the grant does not cover uid 5")
    reader = Grant(uids=(1000,), write=False, gids=(1000,))
    assert asked(reader, 1000, writes=False) == (0, "")
    assert asked(reader, 1000, writes=True) == (errno.EROFS, "the grant is for reading only")
    for writes in (False, True):
        assert asked(ALL_RIGHTS, 0, writes=writes, role=Role.NODE)[0] == errno.EPERM
