"""The file system's object types: what a method makes of any arguments, and clients of answers."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

import msgspec

from bftfs.credentials import Credentials
from bftfs.errors import UnreadableAnswer
from bftfs.filesystem import object_types
from bftfs.filesystem.acl import AccessControlList
from bftfs.filesystem.directory import fault_of
from bftfs.filesystem.registry import (
    CREATE,
    FORMAT,
    GET_ATTRIBUTES,
    LOOKUP,
    MAKE_DIRECTORY,
    READ_DIRECTORY,
    SET_EXTENDED,
    TRUNCATE,
    WRITE,
)
from bftfs.filesystem.volume import Format
from bftfs.identifiers import ObjectId, ObjectKind, object_id
from bftfs.query_update.object_type import Refusal, encode_record
from tests.builders import InMemoryObjects
from tests.fuzz.choices import Choices
from tests.fuzz.target import KIB, MIB, Target
from tests.fuzz.values import Pool, generate

_TYPES = object_types()
_METHODS = tuple(_TYPES._methods.values())
_VOLUME = object_id(ObjectKind.VOLUME, placement=0, unique=bytes(14))
_ROOT = object_id(ObjectKind.DIRECTORY, placement=0, unique=bytes(14))
_OBJECTS = (
    _ROOT,
    _VOLUME,
    object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14)),
    *(
        object_id(kind, placement=0, unique=bytes([number]) * 14)
        for number in (1, 2)
        for kind in (ObjectKind.DIRECTORY, ObjectKind.INODE)
    ),
)
_USERS = (Credentials(0, 0), Credentials(1000, 1000, (2000,)), Credentials(1001, 1001))
_NAMES = (b"a", b"b", b"user.a", b"system.posix_acl_access", b"system.posix_acl_default", b"..")
_ACL = AccessControlList.decode(
    bytes.fromhex("0200000001000700ffffffff02000500e803000004000500ffffffff")
    + bytes.fromhex("10000700ffffffff20000000ffffffff")
).encode()


def _pool() -> Pool:
    pool = Pool()
    for value in (*_OBJECTS, *_NAMES, _ACL, bytes(60)):
        pool.add(value)
    return pool


def methods(data: bytes) -> None:
    """Any sequence of methods with any arguments: refusals with an errno, and a sound tree."""
    choices, pool = Choices(data), _pool()
    objects = InMemoryObjects()
    objects.perform(FORMAT, (_VOLUME, _ROOT), Format(4096, 0o1777), _USERS[0])
    steps = 0
    while not choices.exhausted and steps < 40:
        steps += 1
        method = choices.pick(_METHODS)
        names = tuple(
            choices.pick([name for name in _OBJECTS if name[0] in kinds]) for kinds in method.kinds
        )
        user = choices.pick(_USERS)
        try:
            encoded = encode_record(generate(choices, method.arguments, pool))
            arguments = _TYPES.decode_arguments(method, encoded)
        except msgspec.MsgspecError:
            continue
        answer, code = _performed(objects, method.name, names, arguments, user)
        assert code == 0 or code in errno.errorcode
        if code:
            continue
        pool.learn(answer)
        if method.name in (GET_ATTRIBUTES, WRITE, TRUNCATE):
            _usable(getattr(answer, "attributes", answer))
    _sound(objects)


def _performed(
    objects: InMemoryObjects,
    method: str,
    names: tuple[ObjectId, ...],
    arguments: Any,
    user: Credentials,
) -> tuple[Any, int]:
    """The answer, or the errno of the refusal."""
    try:
        return objects.perform(method, names, arguments, user), 0
    except Refusal as refusal:
        return None, refusal.code


def _usable(attributes: Any) -> None:
    """A client can find the blocks of a file, whatever others have made of its layout."""
    layout = attributes.layout
    if layout is not None:
        assert layout.block(_OBJECTS[4], 0)
        assert layout.ranges[0][0] == 0
        assert [at for at, _ in layout.ranges] == sorted({at for at, _ in layout.ranges})
        assert 0 <= attributes.size <= 1 << 44


def _sound(objects: InMemoryObjects) -> None:
    """Every name in the tree leads somewhere that has as many links as names."""
    from bftfs.filesystem.directory import Listing

    root = _USERS[0]
    links: dict[ObjectId, int] = {}
    seen = set()
    below = [_ROOT]
    while below:
        directory = below.pop()
        assert directory not in seen, "a directory has two names"
        seen.add(directory)
        page = objects.perform(READ_DIRECTORY, (directory,), Listing(0, 65536), root)
        assert page.complete
        assert page.directory.entries == len(page.entries)
        assert len({entry.name for entry in page.entries}) == len(page.entries)
        children = [entry for entry in page.entries if entry.identifier[0] == ObjectKind.DIRECTORY]
        assert page.directory.links == 2 + len(children)
        for entry in page.entries:
            assert fault_of(entry.name) == 0
            links[entry.identifier] = links.get(entry.identifier, 0) + 1
        below += [entry.identifier for entry in children]
    for identifier, count in links.items():
        if identifier[0] == ObjectKind.INODE:
            from bftfs.filesystem.objects import NoArguments

            found = objects.perform(GET_ATTRIBUTES, (identifier,), NoArguments(), root)
            assert found.links == count


def _number_of(name: str) -> int:
    return [method.name for method in _METHODS].index(name)


def _method_seeds() -> Iterable[bytes]:
    for name in (CREATE, MAKE_DIRECTORY, LOOKUP, SET_EXTENDED, WRITE):
        yield bytes([_number_of(name), 0, 0, 0, 1, 0, 1, 1, 5, 3, 64, 1, 1]) * 4
    for number in range(len(_METHODS)):
        yield bytes((number * 3 + at * at) % 251 for at in range(60))


def arguments(data: bytes) -> None:
    """Arguments and answers of every method, of any bytes."""
    if not data:
        return
    method = _METHODS[data[0] // 2 % len(_METHODS)]
    decode = _TYPES.decode_answer if data[0] % 2 else _TYPES.decode_arguments
    decode(method, data[1:])


def _argument_seeds() -> Iterable[bytes]:
    for at, method in enumerate(_METHODS):
        for answer, kind in enumerate((method.arguments, method.answer)):
            if kind is not None:
                value = generate(Choices(bytes([1, 7, 3] * 20)), kind, _pool())
                yield bytes([2 * at + answer]) + encode_record(value)


def access_control_lists(data: bytes) -> None:
    """An extended attribute is refused, or is one list that decides every access."""
    acl = AccessControlList.decode(data)
    assert AccessControlList.decode(acl.encode()) == acl
    for user in _USERS:
        acl.permits(7, uid=user.uid, groups=(user.gid,), owner=1000, owning_group=1000)
    assert acl.with_mode(acl.mode).mode == acl.mode
    acl.inherited(0o750)


def names(data: bytes) -> None:
    """Any bytes are the name of an entry, or are told why not."""
    fault = fault_of(data)
    assert fault in (0, errno.ENAMETOOLONG, errno.ENOENT, errno.EINVAL)
    assert (fault == 0) == (0 < len(data) <= 255 and b"/" not in data and b"\0" not in data)


TARGETS = (
    Target(
        "methods",
        methods,
        seeds=_method_seeds,
        work=100_000,
        work_per_byte=1_000,
        memory_bytes=8 * MIB,
        most_bytes=1 * KIB,
    ),
    Target(
        "arguments",
        arguments,
        (msgspec.MsgspecError, UnreadableAnswer),
        seeds=_argument_seeds,
        most_bytes=1 * KIB,
        explains=True,
    ),
    Target(
        "access-control-lists",
        access_control_lists,
        (ValueError,),
        seeds=lambda: (_ACL, bytes(4)),
        most_bytes=2 * KIB,
    ),
    Target("names", names, seeds=lambda: (b"name", b"/", bytes(2)), most_bytes=300),
)
