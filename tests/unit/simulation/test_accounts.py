"""An account that is not what is stored is found at the commit that makes it so."""

from __future__ import annotations

from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.identifiers import BlockId, ClientId, NodeId
from bftfs.read_write.timestamp import BlockTimestamp, version_key
from bftfs.read_write.version_row import stored, unverified
from bftfs.simulation.checkers.accounts import AccountsRecord
from bftfs.simulation.disk import Disk, Tables
from bftfs.storage import Table, Write

NODE = NodeId(0)
CLIENT = ClientId(b"c" * 16)
KEY = version_key(BlockId(b"\4" + bytes(31)), BlockTimestamp(7, CLIENT, bytes(32)))
ROW = unverified(CrossChecksum(b"checksum" * 24))


class Storing:
    """One node that commits, and what the record says."""

    def __init__(self) -> None:
        self.disk = Disk()
        self._record = AccountsRecord()

    def commit(self, *writes: Write) -> list[str]:
        self.disk.apply(writes)
        self._record.committed(NODE, self.disk, self.disk.uncommitted())
        self.disk.commit()
        return self._record.findings

    def lose(self) -> None:
        self.disk.wipe()
        self._record.forget(NODE, self.disk)

    def put_back(self, copy: Tables) -> None:
        self.disk.put_back(copy)
        self._record.forget(NODE, self.disk)


def test_what_is_stored_and_removed_is_paid_and_given_back() -> None:
    storing = Storing()
    assert not storing.commit(*stored(storing.disk, [(KEY, ROW, b"fragment")]))
    assert not storing.commit(*stored(storing.disk, [(KEY, ROW, None)]))
    assert not storing.commit(*stored(storing.disk, [(KEY, None, None)]))


def test_a_node_that_has_lost_its_disk_begins_anew() -> None:
    storing = Storing()
    storing.commit(*stored(storing.disk, [(KEY, ROW, b"fragment")]))
    storing.lose()
    assert not storing.commit(*stored(storing.disk, [(KEY, ROW, b"fragment")]))


def test_a_node_whose_folder_was_put_back_goes_on_from_there() -> None:
    storing = Storing()
    storing.commit(*stored(storing.disk, [(KEY, ROW, b"fragment")]))
    copy = storing.disk.copy()
    assert not storing.commit(*stored(storing.disk, [(KEY, ROW, None)]))
    storing.put_back(copy)
    assert not storing.commit(*stored(storing.disk, [(KEY, ROW, None)]))


def test_what_nobody_pays_is_found() -> None:
    storing = Storing()
    assert storing.commit(Write(Table.BLOCK, KEY, ROW), Write(Table.FRAGMENT, KEY, b"fragment"))


def test_what_is_not_given_back_is_found() -> None:
    storing = Storing()
    storing.commit(*stored(storing.disk, [(KEY, ROW, b"fragment")]))
    assert storing.commit(Write(Table.BLOCK, KEY, None), Write(Table.FRAGMENT, KEY, None))
