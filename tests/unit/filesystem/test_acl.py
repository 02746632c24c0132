"""Access control lists: their form, the access check algorithm of acl(5), chmod, inheritance."""

from __future__ import annotations

import pytest

from bftfs.filesystem.acl import AccessControlList, AclEntry, Tag

OWNER, GROUP_OWNER = 10, 20


def acl(text: str) -> AccessControlList:
    """From the short text form: `u::rw-,u:7:r--,g::r--,m::rw-,o::---`."""
    tags = {
        ("u", False): Tag.OWNER,
        ("u", True): Tag.USER,
        ("g", False): Tag.OWNING_GROUP,
        ("g", True): Tag.GROUP,
        ("m", False): Tag.MASK,
        ("o", False): Tag.OTHERS,
    }
    entries = []
    for line in text.split(","):
        kind, identity, bits = line.split(":")
        permissions = sum(bit for bit, letter in zip((4, 2, 1), bits, strict=True) if letter != "-")
        tag = tags[kind, bool(identity)]
        entries.append(
            AclEntry(tag, permissions, int(identity)) if identity else AclEntry(tag, permissions)
        )
    return AccessControlList(tuple(entries))


FULL = "u::rwx,u:7:rw-,u:8:r-x,g::r-x,g:30:-wx,g:31:r--,m::rw-,o::--x"


def test_the_form_is_that_of_the_extended_attribute() -> None:
    encoded = acl("u::rw-,u:7:r--,g::r--,m::r--,o::---").encode()
    assert encoded == bytes.fromhex(
        "0200000001000600ffffffff020004000700000004000400ffffffff10000400ffffffff20000000ffffffff"
    )
    assert AccessControlList.decode(encoded) == acl("u::rw-,u:7:r--,g::r--,m::r--,o::---")


@pytest.mark.parametrize("text", ["u::rwx,g::r-x,o::r--", FULL])
def test_encoding_and_decoding_are_inverse(text: str) -> None:
    assert AccessControlList.decode(acl(text).encode()) == acl(text)


MINIMAL = acl("u::rw-,g::r--,o::r--").encode()


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\2\0\0",
        b"\1\0\0\0" + MINIMAL[4:],  # another version
        MINIMAL[:4],  # no entries
        MINIMAL[:-1],
        MINIMAL + b"\0",
        MINIMAL[:-8],  # no others
        MINIMAL[:4] + MINIMAL[12:20] + MINIMAL[4:12] + MINIMAL[20:],  # out of order
        MINIMAL[:6] + b"\x08\0" + MINIMAL[8:],  # more than rwx
        MINIMAL[:4] + b"\x40\0" + MINIMAL[6:],  # an unknown tag
        b"\2\0\0\0" + bytes(8 * 1000),
    ],
)
def test_what_is_no_list_is_refused(encoded: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        AccessControlList.decode(encoded)


@pytest.mark.parametrize(
    "text",
    [
        "g::r--,u::rw-,o::r--",  # out of order
        "u::rw-,u:7:r--,g::r--,o::r--",  # a named entry without a mask
        "u::rw-,u::rw-,g::r--,o::r--",
        "u::rw-,g::r--,m::r--,m::r--,o::r--",
        "u::rw-,g::r--",
    ],
)
def test_an_invalid_list_cannot_be_made(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        acl(text)


@pytest.mark.parametrize(
    ("uid", "groups", "granted"),
    [
        (OWNER, (99,), "rwx"),  # the owner's entry is not masked
        (OWNER, (GROUP_OWNER, 30), "rwx"),  # and he needs no group
        (7, (GROUP_OWNER,), "rw-"),  # a named user, masked; his groups do not count
        (8, (30,), "r--"),  # r-x masked by rw-
        (99, (GROUP_OWNER,), "r--"),
        (99, (30,), "-w-"),  # -wx masked by rw-
        (99, (31,), "r--"),
        (99, (GROUP_OWNER, 30), "r--|-w-"),  # either entry may grant, but not both together
        (99, (99,), "--x"),  # others are not masked
    ],
)
def test_the_access_check_algorithm(uid: int, groups: tuple[int, ...], granted: str) -> None:
    alternatives = [
        sum(bit for bit, letter in zip((4, 2, 1), text, strict=True) if letter != "-")
        for text in granted.split("|")
    ]
    for want in range(1, 8):
        expected = any(want & ~alternative == 0 for alternative in alternatives)
        permitted = acl(FULL).permits(
            want, uid=uid, groups=groups, owner=OWNER, owning_group=GROUP_OWNER
        )
        assert permitted == expected, (want, alternatives)


def test_the_mode_shows_the_mask_as_the_group() -> None:
    assert acl(FULL).mode == 0o761
    assert acl("u::rw-,g::r--,o::---").mode == 0o640


def test_chmod_changes_the_mask_and_not_the_owning_group() -> None:
    changed = acl(FULL).with_mode(0o640)
    assert changed == acl("u::rw-,u:7:rw-,u:8:r-x,g::r-x,g:30:-wx,g:31:r--,m::r--,o::---")
    assert acl("u::rwx,g::rwx,o::rwx").with_mode(0o640) == acl("u::rw-,g::r--,o::---")


@pytest.mark.parametrize(
    ("default", "mode", "expected"),
    [
        ("u::rwx,g::r-x,o::r-x", 0o666, "u::rw-,g::r--,o::r--"),
        ("u::rwx,u:7:rwx,g::r-x,m::rwx,o::---", 0o640, "u::rw-,u:7:rwx,g::r-x,m::r--,o::---"),
        ("u::r--,u:7:r--,g::r--,m::r--,o::---", 0o777, "u::r--,u:7:r--,g::r--,m::r--,o::---"),
    ],
)
def test_inheritance_grants_nothing_that_the_mode_does_not(
    default: str, mode: int, expected: str
) -> None:
    inherited = acl(default).inherited(mode)
    assert inherited == acl(expected)
    assert inherited.mode & ~mode == 0
