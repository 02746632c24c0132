"""The checker of what revoked clients open, on items that were sealed with either key."""

from __future__ import annotations

import pytest

from bftfs.crypto.cipher import BlockCipher
from bftfs.identifiers import EpochId, ObjectKind, block_id, object_id
from bftfs.simulation.checkers.secrecy import Sealed, Thief, check_secrecy

BLOCK = block_id(
    object_id(ObjectKind.INODE, placement=0, unique=b"u" * 14), incarnation=0, number=0
)
CONTENT = b"content"
LATER = EpochId(b"e" * 16)


def sealed(*, later: bool) -> Sealed:
    cipher = BlockCipher(b"v" * 32)
    cipher.learn(LATER, b"k" * 32)
    if later:
        cipher.present = LATER
    return Sealed(BLOCK, cipher.seal(BLOCK, CONTENT, nonce=b"n" * 12), CONTENT)


@pytest.mark.parametrize(
    ("later", "began", "found"), [(False, 11, True), (False, 10, False), (True, 11, False)]
)
def test_what_a_revoked_client_opens(later: bool, began: int, found: bool) -> None:
    thieves = {"thief": Thief(BlockCipher(b"v" * 32), since=10)}
    findings = check_secrecy([sealed(later=later)], {CONTENT: began}, thieves)
    assert bool(findings) == found
    assert all(each.startswith("secrecy: b'content'") for each in findings)
