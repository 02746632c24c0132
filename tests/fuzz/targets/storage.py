"""What disks give back: the journal after a crash, fragments, sealed blocks, stored rows."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable
from pathlib import Path
from struct import Struct

import msgspec
from blake3 import blake3

from bftfs.coding import cross_checksum
from bftfs.coding.erasure import ErasureCode
from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import DamagedRow, InvalidAuthenticator, MalformedMessage, UnknownEpoch
from bftfs.identifiers import (
    EPOCH_ID_BYTES,
    OBJECT_ID_BYTES,
    EpochId,
    ObjectId,
    ObjectKind,
    block_id,
    object_id,
)
from bftfs.query_update.history import LogicalTimestamp
from bftfs.query_update.replica import Replica
from bftfs.read_write.validation import item_of, regenerate
from bftfs.server.scrubbing import _check_versions, attested
from bftfs.storage import Table, Write
from nodes.journal import Journal
from tests.fuzz.choices import Choices
from tests.fuzz.cluster import beginning
from tests.fuzz.target import KIB, MIB, Target

_SCRATCH = Path(tempfile.mkdtemp(prefix="bftfs-fuzz-"))
_HEADER = Struct("!16sQI")
_KEY = b"k" * 32


def journal(data: bytes) -> None:
    """Replaying any file gives whole batches or EBADMSG, and a new life begins on top of it."""
    choices = Choices(data)
    path = _SCRATCH / "journal"
    if choices.flag():
        path.write_bytes(choices.rest())
    else:
        records = [
            _record(choices.number(2) + at, choices.octets(choices.number(60)))
            for at in range(choices.number(4))
        ]
        path.write_bytes(b"".join(records) + choices.rest())
    opened = Journal(path, key=_KEY, synced=False)
    try:
        batches: list[list[Write]] = []
        try:
            batches += opened.replay(0)
        except OSError as error:
            if error.errno != errno.EBADMSG:
                raise
            return
        assert len(batches) == opened.sequence
        opened.sequence += 1 << 32  # as a store does that has checkpointed what it found
        opened.clear()
        after = opened.sequence
        opened.append([(int(Table.META), b"key", b"value")])
        assert list(opened.replay(after)) == [[Write(Table.META, b"key", b"value")]]
    finally:
        opened.close()


def _record(sequence: int, batch: bytes) -> bytes:
    rest = _HEADER.pack(b"", sequence, len(batch))[16:]
    record = blake3(rest + batch, key=_KEY).digest(16) + rest + batch
    return record.ljust(-(-len(record) // 512) * 512, b"\0")


def _journal_seeds() -> Iterable[bytes]:
    one = msgspec.msgpack.encode([(1, b"key", b"value"), (2, b"gone", None)])
    two = msgspec.msgpack.encode([(7, b"fragment", bytes(600))])
    written = _record(1, one) + _record(2, two)
    yield b"\1" + written
    yield b"\1" + written[:700]
    yield bytes((0, 2, 1, len(one))) + one + bytes((0, 3)) + b"\1\2\3" + bytes(20)


def fragments(data: bytes) -> None:
    """Any fragments are refused, or regenerate the same N from whichever m are taken."""
    choices = Choices(data)
    N = 2 + choices.number(8)
    m = 1 + choices.number(N)
    code = ErasureCode(m, N)
    if choices.flag():
        held = {index: bytes(piece) for index, piece in enumerate(code.encode(choices.octets(40)))}
    else:
        size = choices.number(20)
        held = {
            choices.number(N + 1): choices.octets(size + choices.flag(8))
            for _ in range(choices.number(N + 2))
        }
    if held and choices.flag(4):
        at = choices.pick(sorted(held))
        held[at] = choices.octets(len(held[at]))
    checksum = cross_checksum.make(held.get(index, b"") for index in range(N))
    item = item_of(code, held)
    generated = None
    if len(held) >= m and max(held) < N:
        generated = regenerate(code, checksum, held)
    if generated is not None:
        assert all(
            cross_checksum.matches(checksum, index, piece) for index, piece in enumerate(generated)
        )
        assert item == item_of(code, dict(enumerate(generated)))
    code.decode(held)


def sealed_blocks(data: bytes) -> None:
    """A block that was not sealed as this very block does not open."""
    inode = object_id(ObjectKind.INODE, placement=0, unique=bytes(14))
    block = block_id(inode, incarnation=0, number=0)
    other = block_id(inode, incarnation=0, number=1)
    cipher = BlockCipher(bytes(32))
    choices = Choices(data)
    for number in range(choices.number(3)):
        cipher.present = EpochId(bytes([number]) * EPOCH_ID_BYTES)
        cipher.learn(cipher.present, bytes([number]) * 32)
    sealed = cipher.seal(choices.pick((block, other)), b"contents", nonce=bytes(12))
    spoiled = bytearray(sealed)
    if choices.flag() and spoiled:
        spoiled[choices.number(len(spoiled))] ^= 1 << choices.number(8)
    elif choices.flag():
        spoiled = bytearray(choices.rest())
    assert cipher.open(block, bytes(spoiled)) == b"contents"


def rows(data: bytes) -> None:
    """A row of an object that the disk has changed is damage, to who reads it and to scrubbing."""
    choices = Choices(data)
    disk = choices.pick(beginning()).snapshot()
    table = choices.pick((Table.OBJECT, Table.VERSION))
    stored = list(disk.scan(table, b"", b"\xff" * 200))
    key, row = choices.pick(stored)
    spoiled = bytearray(row)
    for _ in range(1 + choices.number(3)):
        at = choices.number(len(spoiled) + 1)
        how = choices.number(4)
        if how == 0:
            del spoiled[at : at + choices.number(9)]
        elif how == 1:
            spoiled[at:at] = choices.octets(choices.number(9))
        elif at < len(spoiled):
            spoiled[at] ^= 1 + choices.number(255)
    disk.apply([Write(table, key, bytes(spoiled))])
    versions = [key for key, _ in disk.scan(Table.VERSION, b"", b"\xff" * 200)]
    _check_versions(disk, after=b"")
    for version in versions:
        attested(disk, version)
    name = ObjectId(key[:OBJECT_ID_BYTES])
    replica = Replica(disk, name)
    for each in versions:
        if each.startswith(name):
            replica.version(LogicalTimestamp(each[OBJECT_ID_BYTES:]))


TARGETS = (
    Target("journal", journal, seeds=_journal_seeds, memory_bytes=4 * MIB, most_bytes=8 * KIB),
    Target(
        "fragments",
        fragments,
        (MalformedMessage,),
        seeds=lambda: (bytes(range(1, 100)), bytes(range(200, 100, -1))),
        most_bytes=512,
    ),
    Target(
        "sealed-blocks",
        sealed_blocks,
        (InvalidAuthenticator, UnknownEpoch),
        seeds=lambda: (bytes(80), bytes(range(90))),
        most_bytes=512,
    ),
    Target(
        "rows",
        rows,
        (DamagedRow,),
        seeds=lambda: (bytes(40), *(bytes((at, 1, at, 0)) + bytes(range(60)) for at in range(6))),
        work=60_000,
        memory_bytes=16 * MIB,
        most_bytes=128,
    ),
)
