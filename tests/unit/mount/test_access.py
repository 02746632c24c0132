"""As whom a mount asks, and whose the root directory of a new file system is."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from bftfs import cluster
from bftfs.cluster import ClientEntry
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.keys import Identity
from mount.access import who_mounts


@pytest.mark.parametrize(
    ("uids", "uid", "expected"),
    [
        (None, 1234, Credentials(1234, 77)),
        ((0, 1234), 1234, Credentials(1234, 77)),
        ((4242, 1234), 0, Credentials(4242, 4242)),  # nobody is called 4242 here
        ((0, 1234), 5, Credentials(0, 0)),
    ],
)
def test_the_user_who_mounts_or_the_first_as_whom_the_client_may_act(
    monkeypatch: pytest.MonkeyPatch, uids: tuple[int, ...] | None, uid: int, expected: Credentials
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getegid", lambda: 77)
    addresses = [f"unix:/nowhere/{number}" for number in range(6)]
    made = cluster.create(addresses, t=1, b=1, draw=os.urandom).description
    identity = Identity.generate(bytes(32))
    entry = ClientEntry(
        "alice", identity.public_key, Grant(uids=uids, gids=() if uids is None else (4242, 77))
    )
    assert who_mounts(replace(made, clients=(entry,)), identity) == expected
