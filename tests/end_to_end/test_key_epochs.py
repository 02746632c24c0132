"""A client is revoked: what it had opens nothing that is written later; the others go on.

Each mount is a client of its own, in a data directory of its own, as on a machine of its own. The
fragments are those that nodes give to a client that may read: whoever steals them from disks has no
others.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bftfs import description_files
from bftfs.cli.command_session import session_at
from bftfs.cli.processes import mount_processes
from bftfs.crypto.cipher import BlockCipher, epoch_named
from bftfs.crypto.keys import read_identity, read_volume_key
from bftfs.data_directory import DataDirectory
from bftfs.errors import PeerFault
from bftfs.identifiers import BlockId, EpochId
from bftfs.key_epochs import epoch_keys_in
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.expectations import eventually, payload

SIZE = 3 * 131072 + 77


class Machine:
    """A client's machine: the files that the administrator has given it, and its mount."""

    def __init__(self, cluster: Cluster, root: Path, name: str, *names: str) -> None:
        bftfs("cluster", "add-client", "--data", cluster.data, name, "--any-uid")
        self.name = name
        root.mkdir(exist_ok=True)
        self.cluster = Cluster(root / name)
        self.mountpoint = self.cluster.mountpoint
        (self.cluster.data / "clients").mkdir(parents=True)
        for file in (*names, "cluster.toml", "cluster.toml.sig", f"clients/{name}.key"):
            shutil.copy2(cluster.data / file, self.cluster.data / file)

    def mounted(self) -> AbstractContextManager[Path]:
        return self.cluster.mount(self.mountpoint, f"client={self.name}")

    @property
    def cipher(self) -> BlockCipher:
        """All keys that its files have."""
        directory = DataDirectory(self.cluster.data)
        cipher = BlockCipher(read_volume_key(directory.volume_key))
        described = description_files.load(directory.description)
        identity = read_identity(directory.client_key(self.name))
        for epoch, key in epoch_keys_in(described, identity).items():
            cipher.learn(epoch, key)
        return cipher


def sealed(path: Path) -> list[tuple[BlockId, bytes]]:
    """The blocks of a file, and their patches, as their fragments give them: not opened yet."""
    with session_at(str(path)) as session:
        located = session.locate(str(path))
        reader = session.files._contents._reader
        file = session.perform(session.files.open(located.identifier, os.O_RDONLY, session.who))
        blocks = -(-located.attributes.size // file.contents.layout.block_bytes)
        found: list[tuple[BlockId, bytes]] = []
        for number in range(blocks):
            name = file.contents.name(number)
            assert name is not None
            read = reader.sealed_version(located.identifier, number, name, session.who)
            for block, item in session.perform(read):
                assert item is not None
                found.append((block, item))
        return found


def epochs_of(path: Path) -> set[EpochId]:
    return {epoch_named(item) for _, item in sealed(path)}


def opens(cipher: BlockCipher, path: Path) -> bool:
    """Whether somebody with these keys opens any block of the file."""
    for block, item in sealed(path):
        try:
            cipher.open(block, item)
        except PeerFault:
            continue
        return True
    return False


@pytest.fixture
def place(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name
    (cluster.mountpoint / name).mkdir()
    yield name
    shutil.rmtree(cluster.mountpoint / name)


def present(cluster: Cluster) -> EpochId:
    return description_files.load(DataDirectory(cluster.data).description).epoch


def write_until(path: Path, epoch: EpochId, data: bytes) -> None:
    """Write the file until its mount has heard of the epoch: a few seconds."""

    def is_written() -> bool:
        path.write_bytes(data)
        return epochs_of(path) == {epoch}

    eventually(is_written, within_s=60, what=f"{path} is written with the new key")


def test_a_revoked_client_opens_nothing_that_is_written_later(
    cluster: Cluster, playground: Path, place: str
) -> None:
    files = ("volume.key",)
    root = playground / "epochs"
    lodger, study, away = (Machine(cluster, root, n, *files) for n in ("lodger", "study", "away"))
    (cluster.mountpoint / place / "old").write_bytes(payload(SIZE))
    with lodger.mounted() as seen:
        assert (seen / place / "old").read_bytes() == payload(SIZE)
    before = present(cluster)
    with study.mounted() as studies, away.mounted() as aways:
        (aways / place / "aways").write_bytes(b"here")
        [pid] = (each.pid for each in mount_processes(DataDirectory(away.cluster.data)))
        os.kill(pid, signal.SIGSTOP)
        try:
            told = bftfs("cluster", "revoke-client", "--data", cluster.data, "lodger")
            epoch = present(cluster)
            assert "begins: the clients that are left" in told
            assert epoch != before
            keys = lodger.cipher
            assert opens(keys, cluster.mountpoint / place / "old")

            mine, hers = cluster.mountpoint / place / "mine", studies / place / "hers"
            write_until(mine, epoch, payload(SIZE, 1))
            write_until(hers, epoch, payload(SIZE, 2))
            assert not opens(keys, mine)
            assert not opens(keys, hers)
            assert (studies / place / "mine").read_bytes() == payload(SIZE, 1)
            assert (cluster.mountpoint / place / "hers").read_bytes() == payload(SIZE, 2)
        finally:
            os.kill(pid, signal.SIGCONT)
        # It was away meanwhile, and catches up.
        assert (aways / place / "mine").read_bytes() == payload(SIZE, 1)
        write_until(aways / place / "aways", epoch, payload(SIZE, 3))
        assert not opens(keys, cluster.mountpoint / place / "aways")
        assert (studies / place / "aways").read_bytes() == payload(SIZE, 3)

        # What was written before is written again, while others use it.
        since = bftfs("log", cluster.mountpoint / place / "old", "--json")
        done = bftfs("re-encrypt", cluster.mountpoint / place)
        assert "1 of 4 files had contents with earlier keys" in done
        assert epochs_of(cluster.mountpoint / place / "old") == {epoch}
        assert not opens(keys, cluster.mountpoint / place / "old")
        for mount in (studies, aways, cluster.mountpoint):
            assert (mount / place / "old").read_bytes() == payload(SIZE)
        assert bftfs("log", cluster.mountpoint / place / "old", "--json") == since
        again = bftfs("re-encrypt", cluster.mountpoint / place, "--rate", "1000")
        assert "0 of 4 files had contents with earlier keys; 0 B written again" in again
    for name in ("study", "away"):
        bftfs("cluster", "revoke-client", "--data", cluster.data, name)


def test_who_comes_later_needs_its_key_and_the_description(
    cluster: Cluster, playground: Path, place: str
) -> None:
    """It reads what was written in all epochs, of the past, too."""
    file = cluster.mountpoint / place / "file"
    file.write_bytes(b"first")
    [version] = json.loads(bftfs("log", file, "--json"))[:1]
    said = bftfs("cluster", "new-epoch", "--data", cluster.data)
    assert "begins: the clients that are left" in said
    write_until(file, present(cluster), b"second")
    late = Machine(cluster, playground / "epochs", "late")
    assert not (late.cluster.data / "volume.key").exists()
    with late.mounted() as seen:
        assert (seen / place / "file").read_bytes() == b"second"
        past = bftfs("cat", f"{seen / place / 'file'}@{version['time']}")
        assert past == "first"
    shown = bftfs("cluster", "clients", "--data", cluster.data)
    assert "Key epoch " in shown
    bftfs("cluster", "revoke-client", "--data", cluster.data, "late")
