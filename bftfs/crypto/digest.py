"""Domain-separated digests, and the authenticators over them.

One named function per use of a digest, so that no two uses share an input space. Small values are
hashed with BLAKE2b under a `person` tag of their own; fragments with keyed BLAKE3, which runs at
the speed of memory.

An authenticator is one MAC per server over a digest of what a server reports. [Q/U §4.3.4] Server s
makes n MACs, the i-th with the key that it shares with server i, so that every server can check
that s really reported that replica history (or hosts that version of a block; the digest's tag
tells which). What one server needs to check an authenticator is its *entry*: the life, its own MAC,
and the lives that are told. A client that shows authenticators sends each server its entries, and
not what the others check. The key of a pair is the same in both directions; the MAC's input
therefore begins with the number of the server that makes it, and a server's MAC cannot be handed
back to it as its peer's.

A server that may have forgotten something begins a new *life* (`bftfs.server.recovery`). An
authenticator is one value of 8 + 16·n bytes: the life in which it was made, which all MACs cover,
and the MACs. What a server signed in an earlier life counts for nothing with those who know that.
One over a replica history, or over a set of versions that its maker hosts, tells as well which
lives of others its maker knew, in 8·n more bytes that all MACs cover; they are left out while that
is everybody's first. (`bftfs.query_update.consistent`)

**Invariant.** Each tag below is used by exactly one function. The functions take fixed-length
fields before the one field of variable length, so that concatenation is unambiguous.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from hmac import compare_digest
from operator import itemgetter
from struct import Struct
from typing import Any, NewType, TypeAlias

from blake3 import blake3

from bftfs.identifiers import CLIENT_ID_BYTES, BlockId, ClientId, NodeId, ObjectId

Digest = NewType("Digest", bytes)  # 32 bytes
_Split: TypeAlias = Callable[[Any], tuple[bytes, ...]]

DIGEST_BYTES = 32
MAC_BYTES = 16
LIFE_BYTES = 8
LIFE_MOST = (1 << 63) - 1  # what replies can tell; nobody's authenticator of a later one is valid
_LATEST = LIFE_MOST.to_bytes(LIFE_BYTES, "big")


def _tagged(tag: bytes, digest_size: int = DIGEST_BYTES) -> Callable[[bytes], Digest]:
    """The function that hashes under `tag`."""
    prepared = hashlib.blake2b(digest_size=digest_size, person=tag)

    def digest(data: bytes) -> Digest:
        state = prepared.copy()  # which is cheaper than to prepare it again
        state.update(data)
        return state.digest()  # type: ignore[return-value]

    return digest


# The digest that binds a timestamp to the value it was made for. [PASIS §3.4.2]
verifier_of = _tagged(b"bftfs.verifier")
# The part of a compact timestamp that stands for operation and history set. [Q/U §4.3.4]
operation_digest = _tagged(b"bftfs.operation")
# A server sends this digest of a large answer if another server sends the answer whole.
answer_digest = _tagged(b"bftfs.answer")
# A server sends this digest of a page if another server sends the page whole.
sync_page_digest = _tagged(b"bftfs.syncpage")
# The identity of one version of a cluster description.
cluster_digest = _tagged(b"bftfs.cluster")

# What a server signs to show which life it lives.
LIFE_DIGEST = _tagged(b"bftfs.life")(b"")

_run = _tagged(b"bftfs.run")
_voucher = _tagged(b"bftfs.voucher")
_vouched = _tagged(b"bftfs.vouched")
_patched = _tagged(b"bftfs.patched")
_replica_history = _tagged(b"bftfs.history")
_deduction = _tagged(b"bftfs.deduction")
_link = _tagged(b"bftfs.link")
_inventory = _tagged(b"bftfs.inventory")
_client = _tagged(b"bftfs.client", CLIENT_ID_BYTES)
_FRAGMENT_KEY = _tagged(b"bftfs.fragment")(b"")
_BACKUP_KEY = _tagged(b"bftfs.backup")(b"")
backup_tree_digest = _tagged(b"bftfs.backuptree")


Body: TypeAlias = bytes | memoryview  # what travels behind a message


def fragment_digest(fragment: Body | bytearray) -> Digest:
    """The digest of one fragment: an entry of a cross-checksum. [PASIS §3.4.2]"""
    return Digest(blake3(fragment, key=_FRAGMENT_KEY).digest())


def backup_record_digest(*, previous: Digest, encoded: bytes) -> Digest:
    """The digest behind a record of a backup: of all records so far, this one the last."""
    return Digest(blake3(previous, key=_BACKUP_KEY).update(encoded).digest())


def run_digest(number: bytes) -> Digest:
    """The input of the MACs by which a server shows that it has begun a run."""
    return _run(number)


def voucher_digest(*, block: BlockId, timestamp: bytes) -> Digest:
    """The input of a voucher's MACs: a node hosts this version of this block."""
    return _voucher(block + timestamp)


def vouched_digest(versions: Iterable[bytes]) -> Digest:
    """The input of a voucher's MACs: a node hosts all of these, blocks with timestamps."""
    return _vouched(b"".join(versions))


def patched_digest(verifiers: Iterable[bytes]) -> Digest:
    """A digest of a block with patches: of the verifiers of all its parts, in their order."""
    return _patched(b"".join(verifiers))


def replica_history_digest(*, object: ObjectId, encoded: bytes) -> Digest:  # noqa: A002
    """The input of an authenticator's MACs: the object, and its replica history. [Q/U §4.3.4]"""
    return _replica_history(object + encoded)


def deduction_digest(*, timestamp: bytes, objects: Iterable[bytes], established: bool) -> Digest:
    """The input of the MACs over a server's deduction: a candidate's fate. [Q/U §4.3.7]

    Of a candidate of these objects: those that its operation did not touch do not show it.
    """
    return _deduction(timestamp + (b"\1" if established else b"\0") + b"".join(objects))


def link_digest(*, object: ObjectId, encoded: bytes) -> Digest:  # noqa: A002
    """The digest of a version of an object, by which two servers compare theirs."""
    return _link(object + encoded)


def inventory_digest(keys: Iterable[bytes]) -> Digest:
    """The digest of the keys of versions that a node hosts, all of one length."""
    return _inventory(b"".join(keys))


def client_id_of(public_key: bytes) -> ClientId:
    """The name under which a principal's requests are accounted and its timestamps ordered."""
    return ClientId(_client(public_key))


ENTRY_BYTES = LIFE_BYTES + MAC_BYTES  # of one that tells no lives of others


@cache
def authenticator_bytes(n: int, *, knowing: bool = False) -> int:
    """The size of an authenticator for n servers; of one that tells lives of others, if so."""
    return LIFE_BYTES + MAC_BYTES * n + (LIFE_BYTES * n if knowing else 0)


def padded(authenticators: Sequence[bytes]) -> bytes:
    """These, concatenated: if some of them tell lives of others, all get room for that."""
    joined = b"".join(authenticators)
    width = max(map(len, authenticators), default=0)
    if len(joined) == width * len(authenticators):
        return joined
    return b"".join([authenticator.ljust(width, b"\0") for authenticator in authenticators])


@cache
def entry_bytes(n: int, *, knowing: bool = False) -> int:
    """The size of one server's entry of an authenticator for n servers."""
    return ENTRY_BYTES + (LIFE_BYTES * n if knowing else 0)


def entries_of(authenticators: bytes, n: int) -> tuple[bytes, ...]:
    """For each of n servers its entries of these authenticators, in their order. [Q/U §4.3.4]

    Requires: there are at most 2 n, of one size (`padded`). Raises ValueError if their bytes cannot
    be that.
    """
    if not authenticators:
        return (b"",) * n
    # As many bytes as plain ones have in all, longer ones have only if there are 2 n + 1 or more.
    knowing = len(authenticators) % authenticator_bytes(n) != 0
    count, rest = divmod(len(authenticators), authenticator_bytes(n, knowing=knowing))
    if rest:
        raise ValueError(f"{len(authenticators)} bytes are no authenticators for {n} servers")
    split, entries = _split(n, count, knowing=knowing)
    parts = split(authenticators)
    return tuple([b"".join(entry(parts)) for entry in entries])


@cache
def _split(n: int, count: int, *, knowing: bool) -> tuple[_Split, tuple[_Split, ...]]:
    """A function that splits `count` authenticators into parts; for each server, one that selects.

    An authenticator has n + 2 parts: its life, n MACs, and the lives that it tells of others.
    """
    one = f"{LIFE_BYTES}s" + f"{MAC_BYTES}s" * n + f"{LIFE_BYTES * n if knowing else 0}s"
    starts = range(0, (n + 2) * count, n + 2)
    return Struct(one * count).unpack, tuple(
        itemgetter(*[at for start in starts for at in (start, start + 1 + node, start + 1 + n)])
        for node in range(n)
    )


def tell_lives(entries: bytes, count: int) -> bool:
    """True if some of these entries of `count` authenticators tell lives of others."""
    return len(entries) > ENTRY_BYTES * count


def lives_in(authenticator: bytes, n: int) -> tuple[int, ...]:
    """The lives of others that an authenticator tells: nothing if it tells none."""
    return _lives(authenticator[authenticator_bytes(n) :])


def lives_in_entry(entry: bytes) -> tuple[int, ...]:
    """The same, of an entry."""
    return _lives(entry[ENTRY_BYTES:])


def _lives(known: bytes) -> tuple[int, ...]:
    return tuple(
        int.from_bytes(known[start : start + LIFE_BYTES], "big")
        for start in range(0, len(known), LIFE_BYTES)
    )


def life_of(authenticator: bytes) -> int:
    """The life in which it was made; 0 for nothing, which stands for the initial history."""
    return int.from_bytes(authenticator[:LIFE_BYTES], "big")


class AuthenticatorKeys:
    """The keys that server `node` shares with every server, itself included, by server number.

    And the latest life of each server that it knows of, by which it makes and checks.
    """

    __slots__ = ("_from", "_known", "_parts", "_presents", "_to", "lives", "node", "told")

    def __init__(self, node: NodeId, keys: tuple[bytes, ...]) -> None:
        self.node = node
        self.lives = (0,) * len(keys)
        self.told: tuple[int, ...] = ()  # the same, but nothing while nobody has begun a second one
        self._presents = [bytes(LIFE_BYTES)] * len(keys)  # the same, as authenticators begin
        self._known = b""  # the same of others, as authenticators end
        self._to = tuple(_state(key, maker=node) for key in keys)
        self._from = tuple(_state(key, maker=maker) for maker, key in enumerate(keys))
        # By the size of an entry: its life, this server's MAC, and the lives of others.
        self._parts = {
            entry_bytes(len(keys), knowing=bool(known)): Struct(
                f"{LIFE_BYTES}s{MAC_BYTES}s{known}s"
            )
            for known in (0, LIFE_BYTES * len(keys))
        }

    def learn(self, maker: int, life: int) -> None:
        """`maker` has begun `life`: what it made before is outlived."""
        if self.lives[maker] < life <= LIFE_MOST:
            self.told = self.lives = (*self.lives[:maker], life, *self.lives[maker + 1 :])
            self._presents[maker] = life.to_bytes(LIFE_BYTES, "big")
            if maker != self.node:
                known = list(self._presents)
                known[self.node] = bytes(LIFE_BYTES)
                self._known = b"".join(known)

    def make(self, digest: bytes, *, life: int | None = None) -> bytes:
        """This server's authenticator over `digest`; one of another life shows what it signed."""
        present = self._presents[self.node] if life is None else life.to_bytes(LIFE_BYTES, "big")
        return self._made(present, b"", digest)

    def make_knowing(self, digest: bytes) -> bytes:
        """One that tells which lives of others this server knows of."""
        return self._made(self._presents[self.node], self._known, digest)

    def made_alike(self, digest: bytes, authenticator: bytes) -> bytes:
        """This server's own over `digest` that tells the same lives as `authenticator`."""
        known = authenticator[authenticator_bytes(len(self._to)) :]
        return self._made(authenticator[:LIFE_BYTES], known, digest)

    def _made(self, present: bytes, known: bytes, digest: bytes) -> bytes:
        parts, covered = [present], present + known + digest
        for prepared in self._to:
            state = prepared.copy()
            state.update(covered)
            parts.append(state.digest())
        parts.append(known)
        return b"".join(parts)

    def check(self, *, claimed_by: int, digest: bytes, authenticator: bytes) -> bool:
        """True if server `claimed_by`'s `authenticator` over `digest` holds for this server.

        A Byzantine server may make MACs that are valid for some servers only: other servers may
        find theirs invalid.
        """
        return self._judge(claimed_by, digest, authenticator) == ([], [])

    def is_outlived(self, *, claimed_by: int, digest: bytes, authenticator: bytes) -> bool:
        """True if it holds for this server, but its maker has begun a new life since."""
        return self._judge(claimed_by, digest, authenticator) == ([], [claimed_by])

    def _judge(
        self, claimed_by: int, digest: bytes, authenticator: bytes
    ) -> tuple[list[int], list[int]]:
        """`refuted`, of one authenticator that may be anything."""
        if len(authenticator) != authenticator_bytes(len(self._from)):
            return [claimed_by], []
        if not 0 <= claimed_by < len(self._from):
            return [claimed_by], []
        makers, entry = bytes((claimed_by,)), self._own_entry(authenticator)
        return self.refuted(makers=makers, digest=digest, entries=entry)

    def _own_entry(self, authenticator: bytes) -> bytes:
        """This server's entry of a whole authenticator."""
        start = LIFE_BYTES + MAC_BYTES * self.node
        mac, known = authenticator[start : start + MAC_BYTES], len(self._to) * MAC_BYTES
        return authenticator[:LIFE_BYTES] + mac + authenticator[LIFE_BYTES + known :]

    def is_own(self, digest: bytes, authenticator: bytes) -> bool:
        """True if this server has made it, in whatever life."""
        n = len(self._from)
        if len(authenticator) not in (authenticator_bytes(n), authenticator_bytes(n, knowing=True)):
            return False
        makers, entry = bytes((self.node,)), self._own_entry(authenticator)
        return not self.refuted(makers=makers, digest=digest, entries=entry)[0]

    def refuted(
        self, *, makers: bytes, digest: bytes, entries: bytes
    ) -> tuple[list[int], list[int]]:
        """The servers among `makers` whose MACs for us are not valid, and those whose are outlived.

        A valid one of a later life tells that the maker has begun that; but of its own lives a
        server knows by itself.

        Requires: `entries` are this server's of the makers' authenticators over `digest`,
        concatenated, and have one size; makers are servers.
        """
        parts = self._parts[len(entries) // len(makers)]
        states, presents = self._from, self._presents
        refuted: list[int] = []
        outlived: list[int] = []
        for maker, (life, mac, known) in zip(makers, parts.iter_unpack(entries), strict=True):
            state = states[maker].copy()
            state.update(life + known + digest if known and any(known) else life + digest)
            if not compare_digest(state.digest(), mac):
                refuted.append(maker)
            elif life != presents[maker]:
                if life > _LATEST:
                    refuted.append(maker)
                elif life > presents[maker] and maker != self.node:
                    self.learn(maker, life_of(life))
                else:
                    outlived.append(maker)
        return refuted, outlived


def _state(key: bytes, *, maker: int) -> hashlib.blake2b:
    """A keyed state that has taken in the maker's number; copying it spares both."""
    return hashlib.blake2b(
        maker.to_bytes(2, "big"), key=key, digest_size=MAC_BYTES, person=b"bftfs.entry"
    )
