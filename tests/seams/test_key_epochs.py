"""Who was revoked opens nothing that is written later, and everybody else goes on.

The thief was a client: he has its key, the volume key and all descriptions of his time. And he has
come by every fragment that nodes store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from bftfs import cluster, description_files
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import NOBODY
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.coding.erasure import ErasureCode
from bftfs.crypto.cipher import BlockCipher, epoch_named
from bftfs.crypto.keys import Identity
from bftfs.description_files import SignedDescription
from bftfs.envelope import DescriptionReply, DescriptionRequest, EpochReply, EpochRequest
from bftfs.errors import (
    FileSystemError,
    InvalidAuthenticator,
    PeerFault,
    QuorumUnavailable,
    UsageError,
)
from bftfs.filesystem import epochs
from bftfs.filesystem.epochs import CONFIRMED_US, SOUGHT_US, EpochFollower
from bftfs.filesystem.operations import FileSystem
from bftfs.filesystem.options import Options
from bftfs.identifiers import FIRST_EPOCH, EpochId, ObjectId
from bftfs.key_epochs import epoch_keys_in, with_keys_for_all, with_new_epoch
from bftfs.limits import OTHER_DESCRIPTIONS
from bftfs.query_update.client import QueryUpdateClient
from bftfs.read_write.placement import fragment_index
from bftfs.server.step import Ready
from bftfs.simulation.principals import NodeServices
from bftfs.simulation.world import SECOND_US
from bftfs.storage import Table
from nodes.membership import LiveMembership, MembershipServer, Others, latest_description
from tests.seams.world import ROOT, SUPERUSER, VOLUME, User, World

VOLUME_KEY = b"v" * 32
YEAR_US = 365 * 24 * 3_600 * SECOND_US
BEFORE, AFTER = "written before", "written later."
NAMES = ("root", "thief", "alice")


def identity(name: str) -> Identity:
    return Identity.generate(name.encode().ljust(32, b"."))


class Realm:
    """A world whose nodes tell descriptions, and the administrator who signs these."""

    def __init__(self, path: Path, t: int = 1, b: int = 1) -> None:
        self.world = World(t, b)
        self._draws = count(1)
        self.made = cluster.create(
            [f"tcp:10.0.0.{node}:7000" for node in range(self.world.sizes.n)],
            t=t,
            b=b,
            draw=self.draw,
        )
        described = self.made.description
        for name in NAMES:
            described = described.with_client(ClientEntry(name, identity(name).public_key))
        self.first = self.latest = described
        file = path / "cluster.toml"
        description_files.store(file, described, self.made.administrator)
        self.memberships = []
        for node in self.world.nodes:
            kept = path / f"node{node.node}.toml"
            membership = LiveMembership(path / "none.toml", kept, latest_description(file, kept))
            self.memberships.append(membership)
            self.answer(node.node, MembershipServer(membership).step)
        self.root = self.user("root")
        self.root.format()

    def draw(self, length: int) -> bytes:
        return next(self._draws).to_bytes(2, "big").rjust(length, b"d")

    def answer(self, node: int, step: Callable[..., Ready]) -> None:
        """Have a node answer so to questions about descriptions."""
        server: Any = type("Telling", (), {"step": staticmethod(step)})()
        original = self.world.nodes[node]._servers

        def servers() -> NodeServices:
            found: Any = original()
            told = dict.fromkeys((EpochRequest, DescriptionRequest), server)
            return NodeServices({**found, **told}, found.background, found.on_damage)

        self.world.nodes[node].become(servers)

    def user(self, name: str, described: ClusterDescription | None = None) -> Keeper:
        return Keeper(self, name, self.latest if described is None else described)

    def signed(self, described: ClusterDescription) -> SignedDescription:
        return description_files.signed(described, self.made.administrator)

    def begun(self, described: ClusterDescription, **more: Any) -> ClusterDescription:
        """The next description, in a new epoch."""
        later = replace(described, serial=described.serial + 1)
        administrator = self.made.administrator
        return with_new_epoch(
            later, administrator, volume_key=VOLUME_KEY, at_s=7, draw=self.draw, **more
        )

    def tell(self, described: ClusterDescription, nodes: Any = None) -> None:
        signed = self.signed(described)
        for node in range(self.world.sizes.n) if nodes is None else nodes:
            self.memberships[node].take(signed.encoded, signed.signature)

    def revoke(self, name: str = "thief", nodes: Any = None) -> ClusterDescription:
        """A client is revoked, and these nodes hear of it."""
        self.latest = self.begun(self.latest.without_client(name, at_s=7))
        self.tell(self.latest, nodes)
        return self.latest

    # --- what the thief has --------------------------------------------------------------------

    def sealed(self, identifier: ObjectId) -> bytes:
        """The latest version of a file's only block, out of what is on the nodes' disks."""
        layout = self.root.attributes(identifier).layout
        assert layout is not None
        block, sizes = layout.block(identifier, 0), self.world.sizes.read_write
        found: dict[bytes, dict[Any, bytes]] = {}
        for node in self.world.nodes:
            for key, _ in node.disk.scan(Table.BLOCK, block, block + b"\xff" * 60):
                fragment = node.disk.get(Table.FRAGMENT, key)
                assert fragment is not None
                index = fragment_index(block, node.node, sizes.N)
                found.setdefault(key, {})[index] = bytes(fragment)
        latest = found[min(each for each in found if len(found[each]) >= sizes.m)]
        some = dict(list(latest.items())[: sizes.m])
        return bytes(ErasureCode(sizes.m, sizes.N).decode(some))

    def stolen(self, identifier: ObjectId, name: str = "thief") -> str | None:
        """The contents, if the thief's keys open what he has."""
        layout = self.root.attributes(identifier).layout
        assert layout is not None
        cipher = BlockCipher(VOLUME_KEY)
        for described in (self.first, self.latest):
            for epoch, key in epoch_keys_in(described, identity(name)).items():
                cipher.learn(epoch, key)
        try:
            return cipher.open(layout.block(identifier, 0), self.sealed(identifier)).decode()
        except PeerFault:
            return None


class Keeper(User):
    """A correct client with keys, and a description in its files."""

    def __init__(self, realm: Realm, name: str, described: ClusterDescription) -> None:
        self._mine = described, identity(name)
        self.cipher = BlockCipher(None if described.epochs else VOLUME_KEY)
        super().__init__(realm.world, f"{name} {next(realm._draws)}", SUPERUSER)

    def filesystem(self, options: Options) -> FileSystem:
        assert isinstance(self.objects, QueryUpdateClient)
        self.follower = EpochFollower(*self._mine, self.cipher, Peers(self._world.quorums))
        return FileSystem(
            self.objects,
            self.blocks,
            self.capacity,
            self.cipher,
            root=ROOT,
            volume=VOLUME,
            options=options,
            epochs=self.follower,
        )


@pytest.fixture
def realm(tmp_path: Path) -> Realm:
    return Realm(tmp_path)


def test_who_was_revoked_opens_nothing_that_is_written_later(realm: Realm) -> None:
    old = realm.root.make("old", BEFORE)
    assert realm.stolen(old) == BEFORE
    alice = realm.user("alice")
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)
    new = realm.root.make("new", AFTER)
    alice.put(old, AFTER)
    for identifier in (old, new):
        assert epoch_named(realm.sealed(identifier)) == realm.latest.epoch
        assert realm.stolen(identifier) is None
        assert realm.stolen(identifier, "alice") == AFTER
        assert alice.read(identifier) == realm.root.read(identifier) == AFTER


def test_must_fail_where_clients_stay_in_their_epoch(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpochFollower, "_choose", lambda *_: True)
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)
    assert realm.stolen(realm.root.make("new", AFTER)) == AFTER


def test_must_fail_where_a_revocation_begins_no_epoch(realm: Realm) -> None:
    realm.latest = realm.latest.without_client("thief", at_s=7)
    realm.tell(realm.latest)
    realm.world.run_for(CONFIRMED_US)
    assert realm.stolen(realm.root.make("new", AFTER)) == AFTER


def test_a_mount_that_runs_changes_within_seconds(realm: Realm) -> None:
    identifier = realm.root.make("file", BEFORE)
    realm.revoke()
    realm.root.put(identifier, AFTER)  # just now it has heard that nobody was revoked
    assert realm.stolen(identifier) == AFTER
    realm.world.run_for(CONFIRMED_US)
    realm.root.put(identifier, AFTER)
    assert realm.stolen(identifier) is None


def test_one_that_was_away_asks_before_it_writes(realm: Realm) -> None:
    alice = realm.user("alice")
    for _ in range(3):
        realm.latest = realm.begun(realm.latest)
        realm.tell(realm.latest)
    realm.revoke()
    realm.world.run_for(3600 * SECOND_US)
    identifier = alice.make("file", AFTER)
    assert epoch_named(realm.sealed(identifier)) == realm.latest.epoch
    assert realm.latest.epoch_number == 4


def test_a_reader_asks_for_a_key_that_it_lacks(realm: Realm) -> None:
    alice = realm.user("alice")
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)
    assert alice.read(realm.root.make("file", AFTER)) == AFTER


def test_who_comes_later_reads_everything_with_its_own_key(realm: Realm) -> None:
    """Without the volume key: the description has it, for those who are clients."""
    files = [realm.root.make("0", BEFORE)]
    for number in (1, 2):
        realm.latest = realm.begun(realm.latest)
        realm.tell(realm.latest)
        realm.world.run_for(CONFIRMED_US)
        files.append(realm.root.make(str(number), BEFORE))
    assert len({epoch_named(realm.sealed(each)) for each in files}) == 3
    newcomer = ClientEntry("new", identity("new").public_key)
    described = with_keys_for_all(
        realm.latest.with_client(newcomer), realm.made.administrator, draw=realm.draw
    )
    new = realm.user("new", described)
    assert [new.read(each) for each in files] == [BEFORE] * 3


def asked(realm: Realm) -> list[Any]:
    """The senders of questions for the epoch, from now on."""
    found: list[Any] = []
    realm.world.ways.watch = lambda *sent: (
        found.append(sent[0]) if isinstance(sent[3], EpochRequest) else None
    )
    return found


def test_it_costs_a_question_in_five_seconds_of_writing(realm: Realm) -> None:
    identifier = realm.root.make("file", BEFORE)
    realm.world.run_for(CONFIRMED_US)
    questions, began_us = asked(realm), realm.world.now_us
    realm.world.run_for(4 * CONFIRMED_US)
    realm.root.read(identifier)
    assert not questions, "who does not write does not ask"
    realm.root.put(identifier, AFTER)
    for _ in range(20):
        realm.root.put(identifier, AFTER)
    assert realm.world.now_us - began_us < 5 * CONFIRMED_US
    assert len(questions) == realm.world.sizes.n


def test_a_description_is_read_once(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a liar goes on to call it by the name of another epoch."""
    realm.answer(0, claiming(EpochId(b"x" * 16), realm.signed(realm.revoke())))
    read = []
    verified = description_files.verified
    monkeypatch.setattr(
        description_files,
        "verified",
        lambda *a, **more: (read.append(a[0]), verified(*a, **more))[1],
    )
    for number in range(4):
        realm.world.run_for(CONFIRMED_US)
        realm.root.make(str(number), AFTER)
    assert len(read) == 1


# --- nodes that lie, and nodes that have not heard --------------------------------------------


def claiming(epoch: EpochId, signed: SignedDescription | None = None) -> Callable[..., Ready]:
    def step(_view: Any, _sender: Any, message: Any, *_: Any) -> Ready:
        if type(message) is EpochRequest:
            return Ready(EpochReply(epoch))
        if signed is None:
            return Ready(Refused(errno.EACCES, "no"))
        return Ready(DescriptionReply(signed.encoded, signed.signature))

    return step


def test_b_liars_hold_nobody_back(realm: Realm) -> None:
    """One says that there was no revocation, and one is down."""
    realm.answer(0, claiming(FIRST_EPOCH, realm.signed(realm.first)))
    realm.revoke()
    realm.world.nodes[5].crash(down_us=None)
    realm.world.run_for(CONFIRMED_US)
    assert realm.stolen(realm.root.make("new", AFTER)) is None


def test_nobody_but_the_administrator_begins_an_epoch(realm: Realm) -> None:
    """Nor what he has signed for another cluster."""
    stranger = Identity.generate(b"s" * 32)
    forged = with_new_epoch(
        replace(realm.first, administrator=stranger.public_key),
        stranger,
        volume_key=VOLUME_KEY,
        at_s=7,
        draw=realm.draw,
    )
    elsewhere = realm.begun(replace(realm.first, cluster_id=b"e" * 16))
    lies = (description_files.signed(forged, stranger), realm.signed(elsewhere))
    for number, lie in enumerate(lies):
        realm.answer(0, claiming(lie.description.epoch, lie))
        realm.world.run_for(CONFIRMED_US)
        identifier = realm.root.make(f"file {number}", AFTER)
        assert epoch_named(realm.sealed(identifier)) == FIRST_EPOCH
    for lie in lies:
        for node in range(6):  # if all nodes say so, nothing is written
            realm.answer(node, claiming(lie.description.epoch, lie))
        user = realm.user("root")
        user.follower._patience_total_us = CONFIRMED_US
        with pytest.raises(QuorumUnavailable, match="a description of key epochs"):
            user.run(user.follower.confirm())
        assert user.cipher.present == FIRST_EPOCH


def lose_descriptions_once(realm: Realm) -> None:
    """No node sends a description when it is asked for the first time from now on."""

    def once_silent(honest: Callable[..., Ready]) -> Callable[..., Ready]:
        lost = [DescriptionRequest]

        def step(*asked: Any) -> Ready:
            if type(asked[2]) not in lost:
                return honest(*asked)
            lost.clear()
            return Ready(None)

        return step

    for node, membership in enumerate(realm.memberships):
        realm.answer(node, once_silent(MembershipServer(membership).step))


def stolen_where_a_description_was_lost(realm: Realm) -> str | None:
    """What the thief reads of what is written then."""
    realm.revoke()
    lose_descriptions_once(realm)
    realm.world.run_for(CONFIRMED_US)
    return realm.stolen(realm.root.make("new", AFTER))


def test_a_writer_asks_again_for_a_description_that_was_lost(realm: Realm) -> None:
    assert stolen_where_a_description_was_lost(realm) is None


def test_a_reader_asks_again_for_a_description_that_was_lost(realm: Realm) -> None:
    alice = realm.user("alice")
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)
    file = realm.root.make("new", AFTER)
    lose_descriptions_once(realm)
    assert alice.read(file) == AFTER


def test_must_fail_where_writers_go_on_without_it(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = EpochFollower._ask

    async def once(self: EpochFollower) -> bool:
        await ask(self)
        return True

    monkeypatch.setattr(EpochFollower, "_ask", once)
    assert stolen_where_a_description_was_lost(realm) == AFTER


def told_to_a_liar(realm: Realm) -> tuple[ObjectId, Keeper]:
    """Only a liar has heard of an epoch, and is silent once it has told one client."""
    realm.latest = realm.begun(realm.latest)
    realm.tell(realm.latest, [0])
    realm.world.run_for(CONFIRMED_US)
    identifier = realm.root.make("file", BEFORE)
    realm.world.run_for(CONFIRMED_US)  # what few nodes name counts the next time
    realm.root.put(identifier, AFTER)
    realm.world.nodes[0].crash(down_us=None)
    return identifier, realm.user("alice", realm.first)


def test_an_epoch_is_used_once_enough_nodes_have_it(realm: Realm) -> None:
    identifier, alice = told_to_a_liar(realm)
    assert alice.read(identifier) == AFTER
    realm.tell(realm.latest, range(1, 4))
    realm.world.run_for(CONFIRMED_US)
    realm.root.put(identifier, AFTER)
    assert epoch_named(realm.sealed(identifier)) == realm.latest.epoch
    assert alice.read(identifier) == AFTER


def test_must_fail_where_one_node_is_enough(realm: Realm) -> None:
    realm.root.follower._enough = 1
    identifier, alice = told_to_a_liar(realm)
    with pytest.raises(FileSystemError, match="unknown here"):
        alice.read(identifier)


def naming_what_it_does_not_send(realm: Realm, node: int = 0) -> None:
    """A node names an epoch and descriptions, others each time, and sends none of them."""
    numbers = count(1)

    def step(_view: Any, _sender: Any, message: Any, *_: Any) -> Ready:
        if type(message) is DescriptionRequest:
            return Ready(None)
        others = tuple(next(numbers).to_bytes(32, "big") for _ in range(OTHER_DESCRIPTIONS))
        return Ready(EpochReply(EpochId(next(numbers).to_bytes(16, "big")), others))

    realm.answer(node, step)


def writers_wait(realm: Realm) -> int:
    """How long, in microseconds, while a node names what it does not send."""
    naming_what_it_does_not_send(realm)
    realm.world.run_for(CONFIRMED_US)
    began_us = realm.world.now_us
    realm.root.put(realm.root.make("file", BEFORE), AFTER)
    return realm.world.now_us - began_us


def test_no_writer_waits_for_what_a_liar_names(realm: Realm) -> None:
    assert writers_wait(realm) < SECOND_US


def test_must_fail_where_one_node_is_waited_for(realm: Realm) -> None:
    realm.root.follower._b = 0
    assert writers_wait(realm) > 2 * SECOND_US


def read_what_one_node_knows(realm: Realm) -> str:
    """What was sealed in an epoch that one node knows that answers."""
    realm.latest = realm.begun(realm.latest)
    realm.tell(realm.latest, [1])
    for epoch, key in epoch_keys_in(realm.latest, identity("root")).items():
        realm.root.cipher.learn(epoch, key)
    realm.root.cipher.present = realm.latest.epoch
    identifier = realm.root.make("file", AFTER)
    assert epoch_named(realm.sealed(identifier)) == realm.latest.epoch
    realm.world.nodes[5].crash(down_us=None)
    return realm.user("alice", realm.first).read(identifier)


@pytest.mark.parametrize("lies", [False, True])
def test_a_reader_waits_for_what_one_node_names(realm: Realm, lies: bool) -> None:
    if lies:
        naming_what_it_does_not_send(realm)
    assert read_what_one_node_knows(realm) == AFTER


def test_must_fail_where_readers_do_not_wait(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    class Over(epochs._Search):
        under_way: Any = property(lambda _: 0, lambda *_: None)

    monkeypatch.setattr(epochs, "_Search", Over)
    with pytest.raises(FileSystemError, match="unknown here"):
        read_what_one_node_knows(realm)


# --- two administrators at once ----------------------------------------------------------------


def test_keys_of_concurrent_epochs_are_good(realm: Realm) -> None:
    """Some nodes have one description, some the other, both with one number."""
    ours, theirs = realm.begun(realm.first), realm.begun(realm.first)
    realm.tell(ours, range(3))
    realm.tell(theirs, range(3, 6))
    alice, root = realm.user("alice", ours), realm.user("root", theirs)
    realm.world.run_for(CONFIRMED_US)
    files = [alice.make("hers", AFTER), root.make("roots", AFTER)]
    for each in files:
        assert epoch_named(realm.sealed(each)) in (ours.epoch, theirs.epoch)
        assert alice.read(each) == root.read(each) == realm.root.read(each) == AFTER
    realm.latest = realm.begun(ours, others=theirs.epochs)
    assert [each.number for each in realm.latest.epochs] == [1, 1, 2]
    realm.tell(realm.latest)
    realm.world.run_for(CONFIRMED_US)
    assert epoch_named(realm.sealed(alice.make("later", AFTER))) == realm.latest.epoch
    late = realm.user("alice", realm.latest)
    assert [late.read(each) for each in files] == [AFTER] * 2


def read_by_the_thief_after_a_fork(realm: Realm) -> str | None:
    """All nodes have heard of a revocation; three machines that know of it sign at the same time.

    Each description reaches two nodes, and the others two seconds later. A mount begins meanwhile.
    """
    revoking = realm.revoke()
    tips = [realm.begun(revoking) for _ in range(3)]
    for number, tip in enumerate(tips):
        realm.tell(tip, [2 * number, 2 * number + 1])
    alice = realm.user("alice", realm.first)
    done = realm.world.start(alice.host, alice.follower.confirm())
    realm.world.run_for(2 * SECOND_US)
    for tip in tips:
        signed = realm.signed(tip)
        for membership in realm.memberships:
            if membership.latest != tip:
                with suppress(UsageError):  # it is not later: they keep it beside theirs
                    membership.take(signed.encoded, signed.signature)
    realm.world.run_until(lambda: bool(done))
    return realm.stolen(alice.make("file", AFTER))


def test_a_fork_brings_no_mount_to_an_epoch_before_it(realm: Realm) -> None:
    assert read_by_the_thief_after_a_fork(realm) is None


def test_must_fail_where_any_epoch_that_was_read_will_do(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EpochFollower._choose
    monkeypatch.setattr(EpochFollower, "_choose", lambda *given: real(*given) or True)
    assert read_by_the_thief_after_a_fork(realm) == AFTER


def overtaken(realm: Realm) -> tuple[ClusterDescription, ObjectId, Keeper]:
    """All nodes have an epoch, and a description that was signed without knowing of it comes."""
    theirs = realm.begun(realm.begun(realm.first))
    realm.tell(theirs)
    realm.world.run_for(CONFIRMED_US)
    identifier = realm.root.make("file", AFTER)
    assert epoch_named(realm.sealed(identifier)) == theirs.epoch
    ours = replace(realm.first, serial=theirs.serial).without_client("thief", at_s=7)
    realm.latest = realm.begun(ours)
    realm.tell(realm.latest)
    return theirs, identifier, realm.user("alice", realm.latest)


def test_nodes_keep_the_keys_that_a_later_description_does_not_know(realm: Realm) -> None:
    theirs, identifier, alice = overtaken(realm)
    assert alice.read(identifier) == AFTER
    realm.world.run_for(CONFIRMED_US)
    realm.root.put(identifier, BEFORE)
    assert epoch_named(realm.sealed(identifier)) == realm.latest.epoch, "the thief has the others"
    assert realm.latest.epoch_number < theirs.epoch_number
    assert alice.read(identifier) == BEFORE
    merged = realm.begun(realm.latest, others=theirs.epochs)
    realm.tell(merged)
    assert realm.user("alice", merged).read(identifier) == BEFORE
    assert all(not membership.others.signed for membership in realm.memberships)


def test_must_fail_where_nodes_forget_them(realm: Realm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Others, "_counts", lambda *_: False)
    _, identifier, alice = overtaken(realm)
    with pytest.raises(FileSystemError, match="unknown here"):
        alice.read(identifier)


def ignorant(realm: Realm, begins: int) -> tuple[ClusterDescription, ClusterDescription]:
    """All nodes hear of a revocation, and then of a later description that does not know of it.

    On another machine somebody has added clients, and has begun so many epochs.
    """
    realm.latest = before = realm.begun(realm.latest)
    realm.tell(before)
    knowing = realm.revoke()
    later = before
    for number in range(3):
        later = later.with_client(ClientEntry(f"new-{number}", identity(f"n{number}").public_key))
    later = with_keys_for_all(later, realm.made.administrator, draw=realm.draw)
    for _ in range(begins):
        later = realm.begun(later)
    realm.tell(later)
    assert all(membership.latest == later for membership in realm.memberships)
    realm.world.run_for(CONFIRMED_US)
    return knowing, later


def read_by_the_thief(realm: Realm, begins: int) -> list[str | None]:
    """What the thief reads of what mounts write that begin with any of the descriptions."""
    knowing, later = ignorant(realm, begins)
    mounts = [realm.root, *(realm.user("alice", each) for each in (realm.first, knowing, later))]
    files = [each.make(f"file {number}", AFTER) for number, each in enumerate(mounts)]
    assert [each.read(file) for each in mounts for file in files] == [AFTER] * 16
    realm.latest = later  # of which the thief has come by a copy, too
    return [realm.stolen(file) for file in files]


@pytest.mark.parametrize("begins", [0, 1, 2])
def test_who_did_not_know_of_a_revocation_takes_nobody_back(realm: Realm, begins: int) -> None:
    assert read_by_the_thief(realm, begins) == [None] * 4


def by_serials_alone(self: EpochFollower, epoch: EpochId) -> Any:
    """In place of `EpochFollower._rank`: the latest description counts, whatever it knows of."""
    return self._serials.get(epoch, -1), epoch


@pytest.mark.parametrize("begins", [0, 1])
def test_must_fail_where_the_latest_description_has_the_epoch(
    realm: Realm, begins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpochFollower, "_rank", by_serials_alone)
    assert AFTER in read_by_the_thief(realm, begins)


def read_after_a_lying_node_has_shown_old_ones(realm: Realm) -> bool:
    """Whether the thief reads what a mount writes to which a node shows all that was signed."""
    knowing, later = ignorant(realm, 0)
    old = []
    for _ in range(10):
        later = realm.begun(later)
        old.append(realm.signed(later))
    realm.tell(later)
    shown = {each.description.digest: each for each in old}
    offers = count()

    def lie(_storage: Any, _sender: Any, message: Any, _body: Any, _now_us: int) -> Ready:
        if isinstance(message, EpochRequest):
            at = next(offers) % (len(old) - OTHER_DESCRIPTIONS + 1)
            return Ready(EpochReply(later.epoch, tuple(shown)[at : at + OTHER_DESCRIPTIONS]))
        one = shown.get(message.digest, old[-1])
        return Ready(DescriptionReply(one.encoded, one.signature))

    realm.answer(0, lie)
    realm.latest = later  # of which the thief has come by a copy
    read = set()
    for number in range(10):
        realm.world.run_for(CONFIRMED_US)
        file = realm.root.make(f"file {number}", AFTER)
        read.add(realm.stolen(file))
        if epoch_named(realm.sealed(file)) == knowing.epoch:
            assert realm.stolen(file) is None
    return AFTER in read


def test_no_number_of_old_descriptions_takes_anybody_back(realm: Realm) -> None:
    assert not read_after_a_lying_node_has_shown_old_ones(realm)


def test_must_fail_where_low_numbers_are_forgotten_first(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lowest(self: EpochFollower) -> Any:
        return [min(self._holders, key=self._serials.__getitem__)]

    monkeypatch.setattr(EpochFollower, "_replaceable", lowest)
    assert read_after_a_lying_node_has_shown_old_ones(realm)


def begun_for_nothing(realm: Realm) -> bool:
    """Whether a mount seals with the key of before though a new epoch was begun, as nodes know."""
    before = realm.begun(realm.first)
    begun = realm.begun(before)
    for each in (before, begun, replace(before, serial=begun.serial + 1)):
        realm.tell(each)
    identifier = realm.user("alice", realm.first).make("file", AFTER)
    return epoch_named(realm.sealed(identifier)) != begun.epoch


def test_a_new_epoch_stays_new_whatever_a_later_description_knows(realm: Realm) -> None:
    assert not begun_for_nothing(realm)


def test_must_fail_where_an_earlier_epoch_comes_back(
    realm: Realm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EpochFollower, "_rank", by_serials_alone)
    assert begun_for_nothing(realm)


# --- files that are ahead of all clocks -------------------------------------------------------


def test_a_file_that_is_ahead_is_sealed_again_and_keeps_its_time(realm: Realm) -> None:
    """All clocks were ahead when somebody asked if writing is permitted: no attribute tells that.

    So the contents have to be brought up to the inode, which is no write of any program's.
    """
    alice, root = realm.user("alice"), realm.root
    hosts = (*realm.world.nodes, alice.host, root.host)
    identifier = root.make("file", BEFORE)
    written_ns = root.attributes(identifier).mtime_ns
    for by_us, ask in ((YEAR_US, True), (-YEAR_US, False)):
        for host in hosts:
            host.skew_us += by_us
        if ask:
            root.run(root.files._metadata.permit_writing(identifier, root.who, NOBODY))
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)

    async def seal_again() -> int:
        file = await alice.files.open(identifier, os.O_RDWR, alice.who)
        sealed = await alice.files.seal_again(file, 0, 8)
        await alice.files.release(file)
        return sealed

    assert alice.run(seal_again()) == 1
    assert realm.stolen(identifier) is None
    assert alice.read(identifier) == BEFORE
    assert root.attributes(identifier).mtime_ns == written_ns


# --- writers that name what does not exist -----------------------------------------------------


def test_an_epoch_that_does_not_exist_costs_its_readers_a_question_a_second(realm: Realm) -> None:
    writer = realm.user("alice")
    writer.cipher.learn(EpochId(b"x" * 16), b"k" * 32)
    identifier = writer.make("file", AFTER)
    writer.cipher.present = EpochId(b"x" * 16)
    writer.put(identifier, AFTER)
    questions = asked(realm)
    began_us = realm.world.now_us
    for _ in range(10):
        with pytest.raises(FileSystemError, match="EIO"):
            realm.root.read(identifier)
    seconds = (realm.world.now_us - began_us) // SOUGHT_US
    assert 0 < len(questions) <= realm.world.sizes.n * (seconds + 1)


def test_a_block_that_names_another_epoch_than_its_own_does_not_open(realm: Realm) -> None:
    identifier = realm.root.make("file", BEFORE)
    realm.revoke()
    realm.world.run_for(CONFIRMED_US)
    realm.root.put(identifier, AFTER)
    layout = realm.root.attributes(identifier).layout
    assert layout is not None
    block, item = layout.block(identifier, 0), realm.sealed(identifier)
    keys = realm.root.cipher
    assert keys.open(block, item) == AFTER.encode()
    keys.learn(EpochId(b"x" * 16), b"k" * 32)
    swapped = item.replace(realm.latest.epoch, b"x" * 16)
    with pytest.raises(InvalidAuthenticator):
        keys.open(block, swapped)
    with pytest.raises(InvalidAuthenticator):
        keys.open(block, item[24:])
