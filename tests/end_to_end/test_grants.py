"""Mounts of clients that may not act as everybody: of one user, of two, and with root as nobody.

Each user of a machine has a client of its own. These mounts are made by root, as from /etc/fstab,
and used by the people themselves.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import (
    ALICE,
    BOB,
    Person,
    act_as,
    assert_contents,
    eventually,
    fails_with,
)

WHEEL = 41910  # a group that alice is in on this machine, and not in her grant
SHARED = 41911  # one that she is in, here and in her grant
AT_HOME = Person(ALICE.uid, ALICE.gid, groups=(WHEEL, SHARED))


@pytest.fixture(scope="module")
def people(cluster: Cluster, playground: Path) -> Iterator[tuple[Path, Path]]:
    """The mounts of alice and of bob, on one machine."""
    for person, name in ((ALICE, "alice"), (BOB, "bob")):
        groups = ("--gid", str(person.gid), "--gid", str(SHARED))
        bftfs(
            *("cluster", "add-client", "--data", cluster.data, name),
            *("--uid", str(person.uid), *groups),
        )
    with (
        cluster.mount(playground / "alices", "client=alice") as alices,
        cluster.mount(playground / "bobs", "client=bob") as bobs,
    ):
        yield alices, bobs
    for name in ("alice", "bob"):
        bftfs("cluster", "revoke-client", "--data", cluster.data, name)


@pytest.fixture
def place(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a directory that everybody may write, below each mount."""
    name = request.node.name
    (cluster.mountpoint / name).mkdir()
    (cluster.mountpoint / name).chmod(0o777)
    yield name
    # What was made through other mounts is seen here a moment later.
    eventually(lambda: removed(cluster.mountpoint / name), within_s=20, what="all is removed")


def removed(path: Path) -> bool:
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


def seen(person: Person, path: Path) -> os.stat_result:
    return act_as(person, lambda: os.stat(path))


def put(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)


def shared_by_root(path: Path, gid: int) -> Path:
    path.write_bytes(b"root's")
    os.chown(path, 0, gid)
    path.chmod(0o660)
    return path


def test_each_uses_the_mount_of_its_own(people: tuple[Path, Path], place: str) -> None:
    for person, mount in zip((ALICE, BOB), people, strict=True):
        mine = mount / place / str(person.uid)
        act_as(person, lambda mine=mine: put(mine, b"mine"))
        found = seen(person, mine)
        assert (found.st_uid, found.st_gid) == (person.uid, person.gid)
        act_as(person, lambda mine=mine: assert_contents(mine, b"mine"))
        act_as(person, lambda mount=mount: os.statvfs(mount))


def test_nobody_else_uses_it(people: tuple[Path, Path], place: str) -> None:
    alices, _ = people
    with fails_with(errno.EPERM):
        act_as(BOB, lambda: put(alices / place / "bobs", b"in her name"))
    with fails_with(errno.EPERM):  # root of this machine, too
        put(alices / place / "roots", b"in her name")


def test_groups_count_that_are_signed(
    cluster: Cluster, people: tuple[Path, Path], place: str
) -> None:
    alices, _ = people
    ours = shared_by_root(cluster.mountpoint / place / "ours", SHARED)
    act_as(AT_HOME, lambda: put(alices / place / "ours", b"alice was here"))
    assert_contents(ours, b"alice was here")
    act_as(AT_HOME, lambda: os.chown(_made(alices / place / "hers"), -1, SHARED))
    assert seen(ALICE, alices / place / "hers").st_gid == SHARED


def test_groups_that_are_not_signed_do_not(
    cluster: Cluster, people: tuple[Path, Path], place: str
) -> None:
    alices, _ = people
    wages = shared_by_root(cluster.mountpoint / place / "wages", WHEEL)
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with fails_with(errno.EACCES):  # when it is opened, and not when it is written
            act_as(AT_HOME, lambda flags=flags: os.open(alices / place / "wages", flags))
    with fails_with(errno.EPERM):
        act_as(AT_HOME, lambda: os.chown(_made(alices / place / "hers"), -1, WHEEL))
    assert_contents(wages, b"root's")
    newgrp = Person(ALICE.uid, WHEEL, groups=(SHARED,))
    act_as(newgrp, lambda: put(alices / place / "made", b""))
    assert seen(ALICE, alices / place / "made").st_gid == SHARED


def _made(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def test_root_as_nobody(cluster: Cluster, playground: Path, place: str) -> None:
    bftfs(
        *("cluster", "add-client", "--data", cluster.data, "desk"),
        *("--any-uid", "--squash-root"),
    )
    secret = cluster.mountpoint / place / "secret"
    secret.write_bytes(b"root's")
    secret.chmod(0o600)
    with cluster.mount(playground / "desk", "client=desk") as desk:
        for flags in (os.O_RDONLY, os.O_WRONLY):
            with fails_with(errno.EACCES):
                os.open(desk / place / "secret", flags)
        with fails_with(errno.EPERM, errno.EACCES):
            (desk / place / "secret").chmod(0o666)
        (desk / place / "by root").write_bytes(b"x")
        found = seen(ALICE, desk / place / "by root")
        assert (found.st_uid, found.st_gid) == (65534, 65534)
        act_as(ALICE, lambda: put(desk / place / "by alice", b"x"))
        assert seen(BOB, desk / place / "by alice").st_uid == ALICE.uid
        assert "by alice" in bftfs("log", desk / place / "by alice")
    assert_contents(secret, b"root's")
    bftfs("cluster", "revoke-client", "--data", cluster.data, "desk")
