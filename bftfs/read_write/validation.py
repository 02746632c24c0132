"""Validated cross-checksums: do all N fragments of a version encode one item? [PASIS §3.4.2.3]

A client that writes fragments which do not (a poisonous write) could make different readers see
different items. A reader therefore generates all N fragments from m of them, and compares their
digests with the cross-checksum. Only a single-valued write passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from bftfs.coding import cross_checksum
from bftfs.coding.cross_checksum import CrossChecksum
from bftfs.coding.erasure import Buffer, ErasureCode
from bftfs.errors import MalformedMessage


class Validated(NamedTuple):
    """The contents of a version that is not poisonous."""

    fragments: tuple[Buffer, ...]  # all N
    item: bytes


def validate(
    code: ErasureCode, checksum: CrossChecksum, fragments: Mapping[int, Buffer]
) -> Validated | None:
    """The version that `fragments`, at least m, belong to; None if it is poisonous."""
    generated = regenerate(code, checksum, fragments)
    if generated is None:
        return None
    item = item_of(code, dict(enumerate(generated[: code.m])))
    return None if item is None else Validated(generated, item)


def regenerate(
    code: ErasureCode, checksum: CrossChecksum, fragments: Mapping[int, Buffer]
) -> tuple[Buffer, ...] | None:
    """All N fragments of the version that `fragments` belong to; None if it is poisonous.

    Requires: each of `fragments`, at least m, matches `checksum`.
    Ensures:  each fragment of the result matches `checksum`, whichever m were given.
    """
    chosen = {index: fragments[index] for index in sorted(fragments)[: code.m]}
    try:
        generated = code.regenerate(chosen)
    except MalformedMessage:
        return None
    for index, fragment in enumerate(generated):
        if index not in chosen and not cross_checksum.matches(checksum, index, fragment):
            return None
    return generated


def item_of(code: ErasureCode, fragments: Mapping[int, Buffer]) -> bytes | None:
    """The item that `fragments` of one version decode to, or None if they hold no item."""
    try:
        return code.decode(fragments)
    except MalformedMessage:
        return None


class ValidatedVersions:
    """The latest versions that this client has written or validated, by their verifiers.

    The verifier binds the cross-checksum, and that binds all N fragments. The result of a
    validation depends on these alone: not on the reader, the nodes that answer, the block or the
    time. So a version is validated once, and one that this client has encoded never.
    """

    __slots__ = ("_most", "_verifiers")

    def __init__(self, most: int) -> None:
        self._most = most
        self._verifiers: dict[bytes, None] = {}  # in the order of their last use

    def add(self, verifier: bytes) -> None:
        """Remember a version as validated."""
        self._verifiers[verifier] = None
        if len(self._verifiers) > self._most:
            del self._verifiers[next(iter(self._verifiers))]

    def __contains__(self, verifier: bytes) -> bool:
        if verifier not in self._verifiers:
            return False
        del self._verifiers[verifier]
        self._verifiers[verifier] = None
        return True

    def __len__(self) -> int:
        return len(self._verifiers)
