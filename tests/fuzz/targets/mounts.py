"""What a mount makes of files that a Byzantine client has made: one with a valid key, as itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pyfuse3

from bftfs.crypto.cipher import BlockCipher
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem import object_types
from bftfs.filesystem.directory import Creation
from bftfs.filesystem.registry import (
    CREATE,
    LINK,
    MERGE,
    RENAME,
    REWRITE,
    SET_EXTENDED,
    TRUNCATE,
    UNLINK,
    WRITE,
)
from bftfs.identifiers import ObjectKind, block_id, object_id
from bftfs.query_update.object_type import Refusal, encode_record
from mount.operations import errno_of, fill
from tests.fuzz.choices import Choices
from tests.fuzz.target import MIB, Target
from tests.fuzz.values import Pool, generate
from tests.unit.filesystem.world import BOB, ROOT_ID, World

_TYPES = object_types()
_FILES = tuple(
    object_id(ObjectKind.INODE, placement=0, unique=bytes([number]) * 14) for number in (1, 2)
)
_NAMES = (b"one", b"two")
_METHODS = (WRITE, TRUNCATE, MERGE, REWRITE, SET_EXTENDED, LINK, RENAME, UNLINK, CREATE)
_MOST_STEPS = 16
_CIPHER = BlockCipher(bytes(range(32)))


def _attack(choices: Choices, world: World, pool: Pool) -> None:
    """One thing that the client does with its own files."""
    if choices.flag(3):
        inode = choices.pick(_FILES)
        incarnation = choices.pick((0, 1 << 32, (1 << 63) - 1))
        block = block_id(inode, incarnation=incarnation, number=choices.number(3))
        content = choices.octets(choices.number(64)) * choices.pick((1, 1, 128))
        if choices.flag():
            content = _CIPHER.seal(block, content, nonce=bytes(12))
        versions = world.blocks.versions.setdefault(block, {})
        versions[max(versions, default=1)] = content  # where it is shown
        return
    method = _TYPES.method(choices.pick(_METHODS))
    assert method is not None
    identifiers = [ROOT_ID, *_FILES]
    names = tuple(
        choices.pick([name for name in identifiers if name[0] in kinds]) for kinds in method.kinds
    )
    try:
        arguments = generate(choices, method.arguments, pool)
        _TYPES.decode_arguments(method, encode_record(arguments))
        answer = world.objects.perform(method.name, names, arguments, BOB)
    except (Refusal, msgspec.MsgspecError):
        return
    pool.learn(answer)


def _tried(world: World, conversation: Any) -> Any:
    """The result, or None if the program sees an errno."""
    try:
        return world.run(conversation)
    except (FileSystemError, OperationFailed) as error:
        if not errno_of(error):
            raise
        return None


def hostile_files(data: bytes) -> None:
    """Programs see contents, attributes and names, or an errno, whatever a writer has written."""
    choices, world, pool = Choices(data), World(), Pool()
    for name in _NAMES:
        pool.add(name)
    for name, inode in zip(_NAMES, _FILES, strict=True):
        creation = Creation(name, 0o100666, 0, 0, b"", 4096)
        world.objects.perform(CREATE, (ROOT_ID, inode), creation, BOB)
    mount = world.mount()
    for _ in range(_MOST_STEPS):
        if choices.exhausted:
            break
        _attack(choices, world, pool)
    listing = world.run(mount.open_directory(ROOT_ID, BOB))
    entries = world.run(mount.read_directory(listing, 0))
    for entry in entries:
        found = _tried(world, mount.lookup(ROOT_ID, entry.name, BOB))
        if found is None:
            continue
        fill(pyfuse3.EntryAttributes(), 1, found.attributes)
        size = found.attributes.size
        _tried(world, mount.read_link(found.identifier, BOB))
        for name in _tried(world, mount.list_extended(found.identifier, BOB)) or ():
            _tried(world, mount.get_extended(found.identifier, name, BOB))
        file = _tried(world, mount.open(found.identifier, 2, BOB))
        if file is None:
            continue
        for offset in (0, 4096, max(0, size - 100)):
            content = _tried(world, mount.read(file, offset, 8192))
            assert content is None or len(content) == max(0, min(8192, size - offset))
        mount.write(file, 0, b"mine", now_ns=world.host.clock_us * 1000)
        _tried(world, mount.synchronize(file))
        _tried(world, mount.release(file))
        world.host.settle()


def _seeds() -> Iterable[bytes]:
    yield b""
    for number in range(12):
        yield bytes((number * 17 + at * at * 5 + at * number) % 251 for at in range(150))


TARGETS = (
    Target(
        "hostile-files",
        hostile_files,
        seeds=_seeds,
        work=60_000,
        work_per_byte=400,
        memory_bytes=16 * MIB,
        most_bytes=500,
    ),
)
