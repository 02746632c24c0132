"""An intruder with a client's key: audited, undone, revoked; and everybody else's work is kept."""

import errno
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.cli.command_session import session_at
from bftfs.crypto.cipher import NONCE_BYTES, BlockCipher
from bftfs.crypto.keys import read_volume_key
from bftfs.read_write.client import ReadWriteClient
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import BLOCK, fails_with, payload
from tests.end_to_end.test_history import HISTORY, now
from tests.end_to_end.test_history_commands import fails

NOBODY = 0xFFFFFFFF  # the id of an ACL's entry that names nobody
FRESH = "attr_timeout=0,entry_timeout=0,negative_timeout=0"


@pytest.fixture
def intruder(
    request: pytest.FixtureRequest, directory: Path, cluster: Cluster, playground: Path
) -> Iterator[Path]:
    """The test's directory, in the mount of a client called mallory."""
    if not (cluster.data / "clients" / "mallory.key").exists():
        bftfs("cluster", "add-client", "--data", cluster.data, "mallory", "--any-uid")
    with cluster.mount(playground / "mallory", f"client=mallory,{FRESH}") as mount:
        yield mount / directory.relative_to(cluster.mountpoint)


@pytest.fixture
def honest(directory: Path, cluster: Cluster, playground: Path) -> Iterator[Path]:
    """The test's directory, in a mount that caches nothing."""
    with cluster.mount(playground / "honest", FRESH) as mount:
        yield mount / directory.relative_to(cluster.mountpoint)


def seen(tree: Path) -> dict[str, tuple[object, ...]]:
    """A tree without times and link counts: names, kinds, modes, owners, contents."""
    found: dict[str, tuple[object, ...]] = {}
    for path in tree.rglob("*"):
        status = path.lstat()
        kind = stat.S_IFMT(status.st_mode)
        contents: object = None
        if stat.S_ISREG(status.st_mode):
            contents = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            contents = os.readlink(path)
        owner = (status.st_uid, status.st_gid)
        found[str(path.relative_to(tree))] = (kind, stat.S_IMODE(status.st_mode), owner, contents)
    return found


def test_an_intruders_changes_are_found_and_taken_back(
    directory: Path, honest: Path, intruder: Path
) -> None:
    (honest / "tree" / "sub").mkdir(parents=True)
    (honest / "keep").mkdir()
    for name, text in (
        ("precious", "precious\n"),
        ("shared", "1\n2\n3\n4\n5\n"),
        ("moved", "secret\n"),
        ("both", "same line\n"),
        ("tree/sub/leaf", "leaf\n"),
        ("keep/a", "first\n"),
    ):
        (honest / name).write_text(text)
    (honest / "binary").write_bytes(payload(3 * BLOCK, 1))
    before = seen(honest)
    since = now()

    (intruder / "precious").write_text("pwned")
    shutil.rmtree(intruder / "tree")
    os.rename(intruder / "moved", intruder / "keep" / "stolen")
    (intruder / "virus").write_text("virus")
    (intruder / "lair").mkdir()
    (intruder / "keep").chmod(0o777)
    (intruder / "shared").write_text("EVIL\n1\n2\n3\n4\n5\n")
    (intruder / "both").write_text("evil line\n")
    with (intruder / "binary").open("r+b") as file:
        file.write(bytes(1000))
    (intruder / "keep" / "a").unlink()

    (honest / "shared").write_text("EVIL\n1\n2\n3\n4\nfive\nsix\n")
    (honest / "both").write_text("better evil line\n")
    (honest / "new").write_text("honest")
    (honest / "keep" / "a").write_text("second\n")

    words = ("--client", "mallory", "--since", since)
    audit = json.loads(bftfs("audit", directory, *words, "--json"))
    assert {row["client"] for row in audit["changes"]} == {"mallory"}
    paths = {row["path"].removeprefix(f"{directory}/") for row in audit["changes"]}
    done = {row["operation"] for row in audit["changes"]}
    assert "rename moved to keep/stolen" in done, "with the directories that differ"
    assert {
        "precious",
        "tree/sub/leaf",
        "keep/stolen",
        "virus",
        "lair",
        "keep",
        "shared",
        "keep/a",
    } <= paths
    built = {row["path"].removeprefix(f"{directory}/") for row in audit["built_on"]}
    assert {"shared", "both", "keep"} <= built
    assert "new" not in built
    assert not any(row["client"] == "mallory" for row in audit["built_on"])

    damaged = seen(honest)
    planned = bftfs("undo", directory, *words, "--dry-run", allowed=(1,))
    assert "conflict: " in planned
    assert seen(honest) == damaged, "a dry run changes nothing"

    undone = bftfs("undo", directory, *words, allowed=(1,))
    assert "2 conflicts" in undone, undone
    mode = 0o644
    text = lambda contents: (stat.S_IFREG, mode, (0, 0), contents)  # noqa: E731
    assert seen(honest) == {
        **before,
        "shared": text(b"1\n2\n3\n4\nfive\nsix\n"),
        "both": text(b"better evil line\n"),
        "both.before-mallory": text(b"same line\n"),
        "new": text(b"honest"),
        "keep/a": text(b"second\n"),
        "keep/a.before-mallory": text(b"first\n"),
    }
    assert (directory / HISTORY / since / "precious").read_text() == "precious\n"
    log = json.loads(bftfs("log", "--json", directory / "precious"))
    assert {row["client"] for row in log} == {"local", "mallory"}, "it stays in the log"


NAMED_USER = struct.pack(  # rw-, and r-- for uid 1234
    "<I" + "HHI" * 5,
    *(2, 0x01, 6, NOBODY, 0x02, 4, 1234, 0x04, 4, NOBODY, 0x10, 4, NOBODY, 0x20, 4, NOBODY),
)


def attributes_of(path: Path) -> tuple[object, ...]:
    status = path.stat()
    extended = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, extended


def test_attributes_are_given_back_and_those_of_others_stay(
    directory: Path, honest: Path, intruder: Path
) -> None:
    file, other, below = honest / "file", honest / "other", honest / "below"
    below.mkdir()
    for path in (file, other, below / "gone"):
        path.write_text("honest")
        os.setxattr(path, "user.kept", b"kept")
        os.setxattr(path, "user.changed", b"before")
        os.utime(path, ns=(10**18, 10**18 + 7))
    os.setxattr(file, "system.posix_acl_access", NAMED_USER)
    os.setxattr(other, "user.removed", b"precious")
    os.utime(below, ns=(10**18, 10**18 + 9))
    expected = {path: attributes_of(path) for path in (file, other, below, below / "gone")}
    since = now()

    evil = intruder / "file"
    os.setxattr(evil, "user.changed", b"evil")
    os.setxattr(evil, "user.new", b"evil")
    os.removexattr(evil, "system.posix_acl_access")
    evil.chmod(0o777)
    os.chown(evil, 1000, 1000)
    os.utime(evil, (1, 1))
    for name in ("user.removed", "user.kept"):
        os.removexattr(intruder / "other", name)
    (intruder / "other").write_text("evil")
    (intruder / "below" / "gone").unlink()

    os.setxattr(file, "user.honest", b"honest")
    os.setxattr(other, "user.kept", b"by others")
    expected[file][4]["user.honest"] = b"honest"  # type: ignore[index]
    expected[other][4]["user.kept"] = b"by others"  # type: ignore[index]

    words = ("--client", "mallory", "--since", since)
    audit = json.loads(bftfs("audit", directory, *words, "--json"))
    done = {row["operation"] for row in audit["changes"]}
    assert {"set attribute user.new", "remove attribute user.removed"} <= done
    assert {"remove attribute system.posix_acl_access", "change times"} <= done
    built = {row["operation"] for row in audit["built_on"]}
    assert built == {"set attribute user.honest", "set attribute user.kept"}
    undone = bftfs("undo", directory, *words)
    assert "owner, times, system.posix_acl_access, user.changed, user.new" in undone
    assert {path: attributes_of(path) for path in expected} == expected
    assert {path.read_text() for path in (file, other, below / "gone")} == {"honest"}
    assert "0 taken back, 0 conflicts" in bftfs("undo", directory, *words)


@pytest.mark.parametrize("seed", range(2))
def test_after_undo_the_tree_is_that_of_honest_work_alone(
    directory: Path, honest: Path, intruder: Path, outside: Path, seed: int
) -> None:
    """Random work by both on things of their own, and of the intruder on others' things."""
    draw = random.Random(seed)
    model = outside / "model"
    model.mkdir()
    for tree in (honest, model):
        for first in ("p", "q", "r"):
            (tree / first).mkdir()
            for second in range(4):
                (tree / first / f"f{second}").write_bytes(payload(50 + 9 * second, second))
    since = now()
    spoilt: set[str] = set()
    for number in range(30):
        name = f"{draw.choice('pqr')}/f{draw.randrange(6)}"
        is_honest = draw.random() < 0.5
        if is_honest and name in spoilt:
            continue
        kind = draw.randrange(5)
        if not is_honest:
            spoilt.add(name)
        for tree in (honest, model) if is_honest else (intruder,):
            work_on(tree / name, kind, number, tree / f"{name[0]}/g{number}")
    if spoilt and seed:
        shutil.rmtree(intruder / "r")
    bftfs("undo", directory, "--client", "mallory", "--since", since)
    assert seen(honest) == seen(model)
    assert extended(honest) == extended(model)
    again = bftfs("undo", directory, "--client", "mallory", "--since", since)
    assert "0 taken back, 0 conflicts" in again
    assert seen(honest) == seen(model)


def extended(tree: Path) -> dict[str, dict[str, bytes]]:
    """The extended attributes of everything in a tree."""
    return {
        str(path.relative_to(tree)): {name: os.getxattr(path, name) for name in os.listxattr(path)}
        for path in tree.rglob("*")
    }


def work_on(path: Path, kind: int, number: int, other: Path) -> None:
    try:
        if kind == 0:
            path.write_bytes(payload(200, number))
        elif kind == 1:
            path.unlink()
        elif kind == 2:
            path.chmod(0o600 if number % 2 else 0o640)
        elif kind == 3:
            os.setxattr(path, f"user.{number % 2}", str(number).encode())
        else:
            os.rename(path, other)
    except FileNotFoundError:
        pass


def scribble(path: Path, number: int, plaintext: bytes) -> None:
    """Write to a block of a file with the key of its mount, and leave its inode alone."""
    with session_at(str(path)) as session:
        located = session.locate(str(path))
        layout = located.attributes.layout
        assert layout is not None
        block = layout.block(located.identifier, number)
        cipher = BlockCipher(read_volume_key(session.directory.volume_key))
        item = cipher.seal(block, plaintext, nonce=os.urandom(NONCE_BYTES))
        peers = Peers(ThresholdQuorums(session.description.query_update))
        client = ReadWriteClient(session.client, session.description.read_write, peers)
        session.perform(client.write(block, item, session.who))


def test_blocks_that_were_not_covered_never_show(
    directory: Path, honest: Path, intruder: Path
) -> None:
    contents = payload(2 * BLOCK, 1)
    for name in ("waiting", "covered", "behind", "clean"):
        (honest / name).write_bytes(contents)
    since = now()
    for name in ("waiting", "covered"):
        scribble(intruder / name, 0, b"evil".ljust(BLOCK, b"!"))
    scribble(intruder / "behind", 2, b"evil")
    for name in ("waiting", "covered"):
        assert (honest / name).read_bytes() == contents
    for name in ("covered", "clean"):
        with (honest / name).open("r+b") as file:
            file.seek(2 * BLOCK - 10)
            file.write(b"0123456789")
    honestly = contents[:-10] + b"0123456789"
    assert (directory / HISTORY / now() / "covered").read_bytes() == honestly

    words = ("--client", "mallory", "--since", since)
    audit = json.loads(bftfs("audit", directory, *words, "--json"))
    assert {
        (Path(row["path"]).name, row["operation"], row["client"]) for row in audit["changes"]
    } == {
        (name, "write 1 block that no update has covered", "mallory")
        for name in ("waiting", "covered", "behind")
    }
    assert audit["built_on"] == []
    assert "no update has covered" in bftfs("audit", directory, *words)
    assert "0 taken back, 0 conflicts" in bftfs("undo", directory, *words)
    with (honest / "behind").open("r+b") as file:
        file.truncate(3 * BLOCK)
    assert {name: (honest / name).read_bytes() for name in os.listdir(honest)} == {
        "waiting": contents,
        "behind": contents + bytes(BLOCK),
        "covered": honestly,
        "clean": honestly,
    }


def test_a_client_that_is_revoked_is_stopped_at_once(
    directory: Path, cluster: Cluster, playground: Path
) -> None:
    bftfs("cluster", "add-client", "--data", cluster.data, "eve", "--any-uid")
    options = f"client=eve,{FRESH}"
    with cluster.mount(playground / "eve", options) as mount:
        there = mount / directory.relative_to(cluster.mountpoint)
        (there / "before").write_text("x")
        since = now()
        bftfs("cluster", "revoke-client", "--data", cluster.data, "eve")
        time.sleep(0.1)
        with fails_with(errno.EACCES):
            (there / "after").write_text("x")
        assert sorted(os.listdir(directory)) == ["before"]
        audit = json.loads(
            bftfs("audit", directory, "--client", "eve", "--since", "1 hour ago", "--json")
        )
        assert audit["changes"], "who was revoked can be audited"
        subprocess.run(["umount", "-l", mount], check=False)
    known = json.loads(bftfs("cluster", "clients", "--data", cluster.data, "--json"))
    [revoked] = [each["id"] for each in known if each["name"] == "eve"]

    # Its name is given to somebody else, who is somebody else.
    bftfs("cluster", "add-client", "--data", cluster.data, "eve", "--any-uid")
    words = ("--since", "1 hour ago")
    refused = fails("audit", directory, "--client", "eve", *words)
    assert f"eve:{revoked[:12]} (revoked)" in refused
    for whose in (revoked, revoked[:12], f"eve:{revoked[:8]}"):
        assert "0 changes" not in bftfs("audit", directory, "--client", whose, *words)
    assert f" eve:{revoked[:12]} " in bftfs("log", directory / "before")
    assert ", 0 conflicts" in bftfs("undo", directory, "--client", revoked[:12], *words)
    assert os.listdir(directory) == []
    assert "no client is called so" in fails(
        "audit", directory, "--client", "nobody-ever", "--since", since
    )
