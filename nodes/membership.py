"""Decides who may connect to a node: the clients in the latest description that it has seen.

**Situation.** An administrator changes the clients while nodes run, and while some of them are
down. A machine may have an old description again, from a backup, or one that differs in more than
its clients. Nodes, and attackers on the network, may show old descriptions, which were signed.

**Rules.**

1. A node takes a description from its file, from the administrator (`Announcement`) or from a peer
   (`bftfs.server.comparison`). It takes it only if the administrator whom its first description
   names has signed it, and if it supersedes the latest one seen: its serial is higher. It stores it
   beside its store, with its signature, and starts with it the next time. So nothing that is older
   can admit a revoked client, or give anybody more rights, from whatever sender.
2. What the administrator takes holds until a later description is signed whose signer knew of it:
   each names those that he knew of (`ClusterDescription.follows`). Of a client that several list of
   which the latest one does not know of the others, the node grants what all of them grant. One
   that another of these names takes nothing beside that.
   What any description calls revoked stays so, if the administrator has signed it: also one that
   is older, or has the number of the latest one and was made on another machine, where somebody did
   not know of the latest. These clients are noted beside the store, and not admitted, whatever
   later descriptions list. A client that is to come back gets a new key.
   The descriptions that say so are kept beside the latest one, and shown to peers, which believe
   the signature (`Others`). So are those with keys of blocks that the latest one does not have.
3. The clients are the others of the latest description, whatever else has changed in it. For all
   other settings the node uses those with which it was started; its health report says that it must
   be restarted to use the new ones.
4. A client that is not listed any more is cut off. So is a client whose rights have changed; it
   connects again and has the new ones. What the node answers to an `Announcement` leaves after
   that: no request that comes later is served by the rights of before.

**Tests.** `tests/seams/test_descriptions.py`, `tests/integration/test_descriptions.py`.

Concurrency: belongs to the loop's thread.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bftfs import description_files
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClusterDescription
from bftfs.credentials import Grant
from bftfs.crypto.digest import Body, Digest, cluster_digest
from bftfs.description_files import SignedDescription, signature_path
from bftfs.durable_files import replace_file
from bftfs.envelope import (
    DescriptionReply,
    DescriptionRequest,
    EpochReply,
    EpochRequest,
    UpkeepReply,
)
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId, NodeId
from bftfs.limits import OTHER_DESCRIPTIONS
from bftfs.printable import as_word
from bftfs.runtime.log import PROCESS_LOG
from bftfs.server.step import Ready, Role, Sender
from bftfs.storage import StorageView

# The fields that nodes take over at once.
_LIVE = {
    *("clients", "client_share", "past_clients", "let_go", "epochs", "keyring", "serial"),
    *("follows", "follows_from"),
}
_READ_MOST = 1024  # descriptions that the node remembers to have read; then it forgets them
RESTART = "more than its clients has changed in its cluster description: restart the node to use it"


def latest_description(path: Path, kept: Path) -> SignedDescription:
    """The description to start with: that in `path`, unless a later one is kept in `kept`."""
    given = description_files.read(path)
    if not kept.exists():
        description_files.keep(kept, given)
        return given
    try:
        latest = description_files.read(kept)
    except UsageError as mistake:
        raise UsageError(
            f"{as_word(kept)}, the latest cluster description that this node has seen, cannot be "
            f"used ({mistake.message}); if {as_word(path)} is the latest one there is, remove "
            f"{as_word(kept)}"
        ) from mistake
    known, described = latest.description, given.description
    if (known.cluster_id, known.administrator) != (described.cluster_id, described.administrator):
        raise UsageError(
            f"{as_word(path)} describes another cluster than {as_word(kept)}, which this node "
            "belongs to; "
            "give the node its own directory, or the description of its cluster"
        )
    if not known.is_superseded_by(described):
        return latest
    revoked, others = Revocations(revocations_path(kept)), Others(kept, described)
    revoked.add(known)
    others.add(latest)
    revoked.store(described)
    others.store()
    description_files.keep(kept, given)
    return given


class Revocations:
    """The clients that the administrator has called revoked, in any description.

    Their file has those that another description calls revoked and the latest one does not: a line
    for each, with its id in hexadecimal digits and its name. Mostly there is none.
    """

    def __init__(self, path: Path) -> None:
        """Raises UsageError if the file in `path` cannot be used."""
        self._path = path
        self._stored: dict[ClientId, str] = {}
        self._names: dict[ClientId, str] = {}
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            for digits, name in map(str.split, lines):
                self._stored[ClientId(bytes.fromhex(digits))] = name
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{as_word(path)}, the clients that were revoked, cannot be used ({error}); get it "
                "from a backup, or remove it and see that `bftfs cluster clients` has all of them"
            ) from error
        self._names |= self._stored

    def __contains__(self, client: ClientId) -> bool:
        return client in self._names

    def add(self, described: ClusterDescription) -> bool:
        """Note the clients that `described` calls revoked; True if one was not known to be."""
        found = {past.client: past.name for past in described.past_clients}
        has_news = not self._names.keys() >= found.keys()
        self._names |= found
        return has_news

    def store(self, latest: ClusterDescription) -> None:
        """Store those that `latest`, which is stored, too, does not name. Raises UsageError."""
        named = {past.client for past in latest.past_clients}
        lacking = {each: name for each, name in self._names.items() if each not in named}
        if self._stored.keys() >= lacking.keys():
            return
        stored = self._stored | lacking
        lines = [f"{client.hex()} {name}\n" for client, name in stored.items()]
        try:
            replace_file(self._path, "".join(lines).encode())
        except OSError as error:
            raise UsageError(
                f"cannot write {as_word(self._path)}: {error.strerror}; check that its directory "
                "exists and is yours"
            ) from error
        self._stored = stored


def revocations_path(kept: Path) -> Path:
    """Where the revoked clients are, beside the latest description."""
    return kept.with_name(kept.name + ".revoked")


class Others:
    """Signed descriptions that take rights which the latest one does not take, or have other keys.

    It was signed without knowing of them; or they call clients revoked that it does not, or list
    key epochs that it does not. Each is kept in files of its own, and shown to anybody who asks. If
    there are too many, those with the lowest numbers go; the clients they revoke stay noted
    (`Revocations`). One that another kept one follows does not count.
    """

    def __init__(self, kept: Path, latest: ClusterDescription) -> None:
        self._kept = kept
        self.signed: tuple[SignedDescription, ...] = ()
        self._latest = latest
        for path in kept.parent.glob(f"{kept.name}.other.*.toml"):
            try:
                self.add(description_files.read(path, administrator=latest.administrator))
            except UsageError as mistake:
                PROCESS_LOG.warning("another description is not used", reason=str(mistake))

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Those of the descriptions."""
        return tuple(each.description.digest for each in self.signed)

    def add(self, *signed: SignedDescription) -> None:
        """Keep these in memory, as far as they count."""
        each = {other.description.digest: other for other in (*self.signed, *signed)}
        counting = [other for other in each.values() if self._counts(other.description)]
        found = sorted(
            (other for other in counting if not self._is_replaced(other, counting)),
            key=lambda other: other.description.serial,
        )
        self.signed = tuple(found[-OTHER_DESCRIPTIONS:])

    def latest_is(self, latest: ClusterDescription) -> None:
        """Drop what does not count beside `latest`."""
        self._latest = latest
        self.add()

    def grant(self, client: ClientId, grant: Grant) -> Grant:
        """What of `grant` those give the client, too, of which the latest one does not know."""
        for other in self.signed:
            entry = other.description.client(client)
            if entry is not None and not self._latest.knows_of(other.description):
                grant = grant if entry.grant == grant else grant.narrowed_by(entry.grant)
        return grant

    def share_of(self, client: ClientId) -> float:
        """The least share of the room that those give the client of which the latest one does not
        know; 1 if there are none.
        """
        shares = (
            other.description.share_of(client)
            for other in self.signed
            if other.description.client(client) is not None
            and not self._latest.knows_of(other.description)
        )
        return min(shares, default=1)

    def store(self) -> None:
        """Write those that have no files, and remove the files of others. Raises UsageError."""
        wanted = {self._path(other): other for other in self.signed}
        for path, other in wanted.items():
            if not path.exists():
                description_files.keep(path, other)
        for path in self._kept.parent.glob(f"{self._kept.name}.other.*.toml"):
            if path not in wanted:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            for each in (path, signature_path(path)):
                each.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot remove {as_word(path)}: {error.strerror}; check that its directory "
                "exists and is yours"
            ) from error

    def _path(self, signed: SignedDescription) -> Path:
        name = f"{self._kept.name}.other.{signed.description.digest[:8].hex()}.toml"
        return self._kept.with_name(name)

    @staticmethod
    def _is_replaced(signed: SignedDescription, others: Iterable[SignedDescription]) -> bool:
        """True if a later one of `others` names it: what it takes was known there.

        And has its keys, and revokes the clients that it revokes. Otherwise somebody who shows a
        node old descriptions would take rights that were given again, and crowd out what others
        take.
        """
        return any(other.description.replaces(signed.description) for other in others)

    def _counts(self, described: ClusterDescription) -> bool:
        latest = self._latest
        if described.cluster_id != latest.cluster_id or described.digest == latest.digest:
            return False
        return not (latest.knows_of(described) and latest.has_ends_of(described))


class LiveMembership:
    """The clients in the latest cluster description.

    The files in `path` are looked at when a greeting arrives, at most once a second while there are
    requests to serve, and on SIGHUP.
    """

    def __init__(self, path: Path, kept: Path, signed: SignedDescription) -> None:
        """`signed` is that of `latest_description`, with which the node has started."""
        self._path = path
        self._kept = kept
        self._files = (path, signature_path(path))
        self._started = signed.description
        self.signed = signed  # the latest
        self.on_change: Callable[[], None] = lambda: None  # called when clients may have changed
        self.unused = ""  # why the files are not used; empty if they are
        self.is_partial = False  # True: parts of the latest description wait for a restart
        self._peers_serial = 0  # the serial of the peers' description
        # Of each file: inode, size, change time.
        self._seen: tuple[tuple[int, int, int], ...] | None = None
        self._revoked = Revocations(revocations_path(kept))
        self._revoked.add(signed.description)
        self.others = Others(kept, signed.description)
        self._read = {each.description.digest for each in (signed, *self.others.signed)}
        self.unstored = ""  # why what was seen last is not stored; empty if it is

    @property
    def latest(self) -> ClusterDescription:
        """The latest description."""
        return self.signed.description

    @property
    def serial(self) -> int:
        """That of the latest description."""
        return self.latest.serial

    def principal(self, public_key: bytes) -> Sender | None:
        """The holder of `public_key`, if the latest description lists it.

        The administrator is the same in all descriptions.
        """
        self.refresh()
        member = self._started.principal(public_key)
        if member is not None and member.node is not None:
            return member
        client = self.latest.principal(public_key)
        if client is None or client.node is not None:
            return None
        if client.role is not Role.CLIENT:
            return client
        if client.client in self._revoked:
            return None
        return replace(client, grant=self.others.grant(client.client, client.grant))

    def admits(self, sender: Sender) -> bool:
        """True if `sender` may still connect, with the same rights."""
        if sender.role is not Role.CLIENT:
            return True
        entry = self.latest.client(sender.client)
        if entry is None or sender.client in self._revoked:
            return False
        return self.others.grant(sender.client, entry.grant) == sender.grant

    def share_of(self, client: ClientId) -> float:
        """The part of the room that the client may use.

        By the latest description, and by those of which it does not know.
        """
        return min(self.latest.share_of(client), self.others.share_of(client))

    def refresh(self) -> None:
        """Read the description again if its files have changed."""
        try:
            seen = tuple(
                (status.st_ino, status.st_size, status.st_mtime_ns)
                for status in (path.stat() for path in self._files)
            )
        except OSError:
            return  # it is being replaced, or was removed: keep the one read before
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._consider(
                description_files.read(self._path, administrator=self._started.administrator)
            )
        except UsageError as mistake:
            PROCESS_LOG.warning("cluster description not taken over", reason=str(mistake))

    def _consider(self, signed: SignedDescription) -> None:
        """Use the file's description if it supersedes the latest one. Raises UsageError.

        That an older one is in the file is no mistake: the node may have the later one from the
        administrator, or from its peers.
        """
        described, latest = signed.description, self.latest
        self.unused = ""
        if latest.is_superseded_by(described):
            self._use(signed)
            return
        self._heed(signed)
        if described.serial == latest.serial and described.digest != latest.digest:
            self.unused = (
                f"{as_word(self._path)} is not used: it is number {described.serial} of the "
                "descriptions, "
                f"and the node has seen another one with this number ({self._kept}); put the "
                "changes of both into one, and sign it (`bftfs cluster sign`)"
            )
            raise UsageError(self.unused)

    def _heed(self, signed: SignedDescription) -> None:
        """Give nobody what a description takes that is not taken over."""
        described, before = signed.description, self.others.signed
        self._note_read(described)
        if described.cluster_id != self.latest.cluster_id:
            return
        self.others.add(signed)
        if self._revoked.add(described) or self.others.signed != before:
            self.on_change()
            with contextlib.suppress(UsageError):
                self._store()

    def _note_read(self, described: ClusterDescription) -> None:
        if len(self._read) >= _READ_MOST:
            self._read = {self.latest.digest, *self.others.digests}
        self._read.add(described.digest)

    def lacks(self, digest: bytes) -> bool:
        """True if it has not seen the description with this digest."""
        return digest not in self._read

    def _store(self) -> None:
        """Store what was seen. Raises UsageError; then `unstored` tells, until it has succeeded."""
        try:
            self._revoked.store(self.latest)
            self.others.store()
            description_files.keep(self._kept, self.signed)
        except UsageError as mistake:
            self.unstored = (
                f"number {self.latest.serial} of the cluster's descriptions is used, and not "
                f"stored: {mistake.message}"
            )
            PROCESS_LOG.warning("cluster description not stored", reason=self.unstored)
            raise UsageError(self.unstored) from mistake
        self.unstored = ""

    @property
    def contradicted(self) -> str:
        """A message if the latest description lists clients that were revoked; else empty."""
        names = [each.name for each in self.latest.clients if each.client in self._revoked]
        if not names:
            return ""
        return (
            f"number {self.latest.serial} of the cluster's descriptions lists "
            f"{', '.join(names[:8])}, whose keys another one calls revoked: the node does not "
            "admit them; run `bftfs cluster revoke-client` for each, and give those that are "
            "to come back a new key"
        )

    @property
    def narrowed(self) -> str:
        """A message if a description of which the latest one does not know narrows grants."""
        names = [
            each.name
            for each in self.latest.clients
            if self.others.grant(each.client, each.grant) != each.grant
        ]
        if not names:
            return ""
        return (
            f"number {self.latest.serial} of the cluster's descriptions was signed without knowing "
            f"of another one; each of {', '.join(names[:8])} has only the rights that all of them "
            "grant; run `bftfs cluster tell`, then `bftfs cluster sign`, and see that the rights "
            "in `cluster.toml` are right"
        )

    def _use(self, signed: SignedDescription) -> None:
        """Use and keep a description that supersedes the latest one. Raises UsageError."""
        before, described, latest = self.signed, signed.description, self.latest
        self.signed = signed  # even if it cannot be stored: revoked clients are cut off
        if described.clients != latest.clients:
            names = [each.name for each in described.clients]
            PROCESS_LOG.info("clients changed", serial=described.serial, clients=names)
        self.is_partial = any(
            getattr(described, each.name) != getattr(self._started, each.name)
            for each in fields(described)
            if each.name not in _LIVE
        )
        if self.is_partial:
            PROCESS_LOG.warning("cluster description taken over in part", reason=RESTART)
        self._revoked.add(described)
        self._note_read(described)
        self.others.latest_is(described)
        self.others.add(before)
        self.on_change()
        self._store()

    def shown(self, digest: bytes) -> SignedDescription:
        """The description with this digest that is kept beside the latest one; else that one."""
        kept = (each for each in self.others.signed if each.description.digest == digest)
        return next(kept, self.signed)

    # --- of others ---------------------------------------------------------------------------

    def take(self, encoded: bytes, signature: bytes) -> None:
        """Use a description that was sent. Raises UsageError if it is none, or is not later."""
        sent = description_files.verified(
            encoded,
            signature,
            administrator=self._started.administrator,
            source="the description that was sent",
        )
        described, latest = sent.description, self.latest
        if latest.is_superseded_by(described):
            self._use(sent)
            return
        self._heed(sent)
        if self.unstored:
            self._store()
        if described.digest != latest.digest:
            raise UsageError(
                f"it has seen number {latest.serial} of the cluster's descriptions, and was sent "
                f"{'another' if described.serial == latest.serial else 'an older'} one, number "
                f"{described.serial}"
            )

    def offer(self, encoded: bytes, signature: bytes, *, by: NodeId) -> None:
        """Use a peer's description if it is signed, and later; unless it was read before.

        To read one of 3 MiB takes a second, in which nobody is served.
        """
        if not self.lacks(cluster_digest(encoded)):
            return
        try:
            self.take(encoded, signature)
        except UsageError as mistake:
            PROCESS_LOG.warning("peer's description not taken", peer=by, reason=str(mistake))

    def compare(self, peers_serial: int) -> None:
        """Some correct peer has the description with this serial, or a later one."""
        if self.unstored:
            with contextlib.suppress(UsageError):
                self._store()
        if peers_serial > max(self._peers_serial, self.latest.serial):
            self._peers_serial = peers_serial
            PROCESS_LOG.warning("old cluster description", reason=self.outdated)

    @property
    def outdated(self) -> str:
        """A message if the latest description here is older than that of the peers; else empty."""
        if self._peers_serial <= self.latest.serial:
            return ""
        return (
            f"its cluster description, number {self.latest.serial}, is older than its peers', "
            f"number {self._peers_serial}, which it could not get from them: run `bftfs cluster "
            "tell` where admin.key is"
        )


class MembershipServer:
    """Serves the messages about descriptions."""

    def __init__(self, membership: LiveMembership) -> None:
        self._membership = membership

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve an `Announcement`, a `DescriptionRequest` or an `EpochRequest`.

        Clients are told descriptions as well: these have their keys, and otherwise nothing that the
        ones in their files have not.
        """
        membership = self._membership
        others = membership.others.digests
        if type(message) is EpochRequest:
            return Ready(EpochReply(membership.latest.epoch, others))
        if type(message) is DescriptionRequest:
            shown = membership.shown(message.digest)
            return Ready(DescriptionReply(shown.encoded, shown.signature, others))
        if sender.role is not Role.ADMINISTRATOR:
            return Ready(Refused(errno.EACCES, "only the cluster's administrator may do upkeep"))
        try:
            membership.take(message.encoded, message.signature)
        except UsageError as mistake:
            return Ready(UpkeepReply(mistake.message[:512]))
        return Ready(UpkeepReply((membership.contradicted or membership.narrowed)[:512]))
