"""A revocation holds at every node that has heard of it, whatever else is in its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from bftfs import cluster, description_files
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.cluster import FOLLOWED, ClientEntry, ClusterDescription, PastClient
from bftfs.credentials import Grant
from bftfs.crypto.digest import client_id_of
from bftfs.crypto.keys import Identity
from bftfs.description_files import SignedDescription
from bftfs.envelope import (
    Announcement,
    DescriptionReply,
    DescriptionRequest,
    HealthReply,
    UpkeepReply,
)
from bftfs.errors import UsageError
from bftfs.identifiers import CLIENT_ID_BYTES, ClientId, NodeId
from bftfs.limits import OTHER_DESCRIPTIONS
from bftfs.server import comparison
from bftfs.server.comparison import Comparison
from bftfs.server.step import Role, Sender
from bftfs.storage import MemoryStorage
from nodes.membership import (
    LiveMembership,
    MembershipServer,
    Others,
    Revocations,
    latest_description,
)

LAPTOP = Identity.generate(b"l" * 32)
CLIENT = client_id_of(public_key=LAPTOP.public_key)
DRAWS = count(1)
NEW = cluster.create(
    [f"tcp:10.0.0.{node}:7000" for node in range(1, 7)],
    t=1,
    b=1,
    draw=lambda length: bytes([next(DRAWS)]) * length,
)
BEFORE = NEW.description.with_client(ClientEntry("laptop", LAPTOP.public_key))
AFTER = BEFORE.without_client("laptop", at_s=7)


def sender(public_key: bytes) -> Sender:
    found = BEFORE.principal(public_key)
    assert found is not None
    return found


ADMINISTRATOR = sender(NEW.administrator.public_key)


def signed(
    description: ClusterDescription, administrator: Identity = NEW.administrator
) -> SignedDescription:
    """The description as it is sent."""
    encoded = cluster.encode(description)
    signature = administrator.sign(description_files._SIGNED + encoded).hex().encode()
    return SignedDescription(description, encoded, signature)


class Machine:
    """A node's machine, and its description's two files."""

    def __init__(self, directory: Path, description: ClusterDescription) -> None:
        self._path = directory / "cluster.toml"
        self._kept = directory / "description.toml"
        self.copy_in(description)
        self.restart()

    def copy_in(self, description: ClusterDescription) -> None:
        """The administrator brings both files, signed."""
        for path in (self._path, description_files.signature_path(self._path)):
            path.unlink(missing_ok=True)
        description_files.store(self._path, description, NEW.administrator)

    def restart(self) -> None:
        """Its node starts anew with what its directory has."""
        latest = latest_description(self._path, self._kept)
        self.membership = LiveMembership(self._path, self._kept, latest)

    def tell(self, sent: SignedDescription) -> str:
        """The administrator sends a description; the node's objection."""
        step = MembershipServer(self.membership).step
        message = Announcement(sent.encoded, sent.signature)
        reply = step(MemoryStorage(), ADMINISTRATOR, message, b"", 0).reply
        assert isinstance(reply, UpkeepReply)
        return reply.error

    def hear(self, sent: SignedDescription) -> None:
        """A peer, which may lie, offers a description."""
        self.membership.offer(sent.encoded, sent.signature, by=NodeId(1))

    @property
    def knows_laptop(self) -> bool:
        return self.membership.principal(LAPTOP.public_key) is not None


def moved(description: ClusterDescription) -> ClusterDescription:
    """The same cluster; one machine has a new address."""
    members = list(description.members)
    members[3] = replace(members[3], address="tcp:10.0.1.4:7000")
    return replace(description, members=tuple(members))


def test_a_revocation_takes_effect(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    assert machine.knows_laptop
    machine.copy_in(BEFORE.without_client("laptop", at_s=7))
    assert not machine.knows_laptop


def test_a_revocation_takes_effect_beside_a_new_address(tmp_path: Path) -> None:
    """A node that was not restarted goes on with the old address; that is no reason to admit."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(moved(BEFORE))
    machine.copy_in(moved(BEFORE).without_client("laptop", at_s=7))
    assert not machine.knows_laptop


@pytest.mark.parametrize("restarts", [False, True])
def test_an_older_description_brings_nobody_back(tmp_path: Path, restarts: bool) -> None:
    """A backup, or somebody's configuration management, puts the old files back."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop", at_s=7))
    assert not machine.knows_laptop
    machine.copy_in(BEFORE)
    if restarts:
        machine.restart()
    assert not machine.knows_laptop


def narrowed(description: ClusterDescription) -> ClusterDescription:
    """The next one, in which the laptop may only read."""
    narrow = replace(BEFORE.clients[0], grant=Grant(uids=(1000,), write=False))
    return replace(description, clients=(narrow,), serial=description.serial + 1)


def test_an_older_description_widens_no_grant(tmp_path: Path) -> None:
    machine = Machine(tmp_path, narrowed(BEFORE))
    machine.copy_in(BEFORE)  # which was signed before
    sender = machine.membership.principal(LAPTOP.public_key)
    assert sender is None or not sender.grant.write


def test_a_node_says_what_waits_for_its_restart(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(narrowed(BEFORE))
    machine.membership.refresh()
    assert not machine.membership.is_partial
    machine.copy_in(moved(narrowed(narrowed(BEFORE))))
    assert machine.knows_laptop
    assert machine.membership.is_partial
    machine.restart()
    assert machine.knows_laptop
    assert not machine.membership.is_partial


def test_a_file_may_be_older_than_what_the_administrator_has_told(tmp_path: Path) -> None:
    """Nobody needs to copy files to a machine whose node was told over the network."""
    machine = Machine(tmp_path, BEFORE)
    machine.tell(signed(BEFORE.without_client("laptop", at_s=7)))
    for _ in range(2):
        assert not machine.knows_laptop
        assert machine.membership.unused == ""
        assert machine.membership.serial == 2
        machine.restart()


def test_of_two_with_one_number_the_first_is_kept(tmp_path: Path) -> None:
    """The administrator has worked on two machines, and neither knew of the other."""
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop", at_s=7))
    assert not machine.knows_laptop
    machine.copy_in(
        BEFORE.with_client(ClientEntry("desk", Identity.generate(b"d" * 32).public_key))
    )
    assert not machine.knows_laptop
    assert "sign it" in machine.membership.unused
    machine.copy_in(replace(BEFORE, clients=(), serial=4))
    machine.membership.refresh()
    assert machine.membership.serial == 4
    assert machine.membership.unused == ""


def test_a_grant_that_narrows_cuts_off_who_has_the_old_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    before = machine.membership.principal(LAPTOP.public_key)
    assert before is not None
    machine.copy_in(moved(narrowed(BEFORE)))
    machine.membership.refresh()
    assert not machine.membership.admits(before)
    now = machine.membership.principal(LAPTOP.public_key)
    assert now is not None
    assert not now.grant.write
    assert machine.membership.admits(now)


# --- two machines of one administrator -----------------------------------------------------------

DESK = ClientEntry("desk", Identity.generate(b"d" * 32).public_key)
HERE = AFTER  # here the laptop was revoked; there nobody knew, and has added a desk, and more
THERE = BEFORE.with_client(DESK)
LATER_THERE = [THERE, replace(THERE, serial=5), replace(THERE, serial=99)]


def learns(draw: Random, machine: Machine, description: ClusterDescription) -> None:
    """The node learns of a description in some way, whatever it thinks of it."""
    how = draw.choice(("copied", "told", "offered"))
    if how == "copied":
        machine.copy_in(description)
        machine.membership.refresh()
    elif how == "told":
        machine.tell(signed(description))
    else:
        machine.hear(signed(description))
    if draw.random() < 0.3:
        machine.restart()


def fork(tmp_path: Path, seed: int) -> Machine:
    """A node that has learnt both, in some order, and is started anew."""
    draw = Random(seed)
    machine = Machine(tmp_path, BEFORE)
    each = [HERE, *LATER_THERE]
    draw.shuffle(each)
    for description in (*each, *draw.choices(each, k=4)):
        learns(draw, machine, description)
    machine.restart()
    return machine


@pytest.mark.parametrize("seed", range(20))
def test_a_revocation_holds_whatever_another_machine_signs(tmp_path: Path, seed: int) -> None:
    machine = fork(tmp_path, seed)
    assert machine.membership.serial == 99
    assert not machine.knows_laptop
    assert not machine.membership.admits(sender(LAPTOP.public_key))
    assert machine.membership.principal(DESK.public_key) is not None
    assert "lists laptop, whose key" in machine.membership.contradicted
    machine.tell(signed(LATER_THERE[-1].without_client("laptop", at_s=8)))
    assert machine.membership.contradicted == ""


def test_the_administrator_is_told_of_who_was_revoked_elsewhere(tmp_path: Path) -> None:
    machine = Machine(tmp_path, HERE)
    changed = []
    machine.membership.on_change = lambda: changed.append(True)
    assert "does not admit them" in machine.tell(signed(LATER_THERE[1]))
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other", LATER_THERE[1])
    other.membership.on_change = lambda: changed.append(True)
    changed.clear()
    assert "sent an older one" in other.tell(signed(HERE))
    assert changed, "it is cut off at once"
    assert not other.knows_laptop


def test_must_fail_where_only_the_latest_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Revocations, "__contains__", lambda *_: False)
    assert fork(tmp_path, 0).knows_laptop


def test_must_fail_where_revocations_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodes.membership.replace_file", lambda *_: None)
    machine = Machine(tmp_path, HERE)
    machine.tell(signed(LATER_THERE[1]))
    assert not machine.knows_laptop
    (tmp_path / "cluster.toml").unlink()
    machine.copy_in(LATER_THERE[1])
    machine.restart()
    assert machine.knows_laptop


@pytest.mark.parametrize("contents", ["x\n", "00 a b\n", "zz laptop\n"])
def test_a_damaged_list_of_the_revoked_is_no_empty_one(tmp_path: Path, contents: str) -> None:
    machine = Machine(tmp_path, HERE)
    (tmp_path / "description.toml.revoked").write_text(contents)
    with pytest.raises(UsageError, match="the clients that were revoked, cannot be used"):
        machine.restart()


def test_who_was_revoked_stays_so_where_a_node_starts_with_a_later_file(tmp_path: Path) -> None:
    """The file came while the node was down; who signed it did not know of the revocation."""
    machine = Machine(tmp_path, HERE)
    machine.copy_in(LATER_THERE[1])
    machine.restart()
    assert machine.membership.serial == 5
    assert not machine.knows_laptop
    machine.restart()
    assert not machine.knows_laptop


def test_what_could_not_be_stored_is_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever tells a node again hears whether it has stored it now, and not that it knows it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for retries in ("told again", "a minute later", "another is told"):
        (tmp_path / retries).mkdir()
        machine = Machine(tmp_path / retries, BEFORE)
        with monkeypatch.context() as patch:
            patch.setattr(description_files, "replace_file", full)
            for _ in range(2):
                assert "is used, and not stored: cannot write" in machine.tell(signed(AFTER))
                assert machine.membership.unstored
            assert not machine.knows_laptop
        if retries == "told again":
            assert machine.tell(signed(AFTER)) == ""
        elif retries == "a minute later":
            machine.membership.compare(2)
        else:
            assert "sent an older one" in machine.tell(signed(BEFORE))
        assert machine.membership.unstored == ""
        machine.restart()
        assert not machine.knows_laptop


def test_what_cannot_be_removed_is_told_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number after two that were signed at once holds by itself; their files have to go."""
    machine = Machine(tmp_path, BEFORE.with_client(DESK))
    machine.tell(signed(narrowed(BEFORE)))
    assert list(tmp_path.glob("*.other.*"))

    def fixed(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    later = signed(replace(BEFORE, serial=3))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fixed)
        assert "not stored: cannot remove" in machine.tell(later)
        assert machine.membership.latest == later.description
    assert machine.tell(later) == ""
    assert not list(tmp_path.glob("*.other.*"))


# --- what one machine takes and another one does not know of --------------------------------------


def grants(machine: Machine) -> Grant:
    """What the node grants the laptop."""
    found = machine.membership.principal(LAPTOP.public_key)
    assert found is not None
    assert machine.membership.admits(found)
    return found.grant


def of_one_number() -> list[ClusterDescription]:
    """Three machines have each narrowed the laptop's grant, or added a desk."""
    [laptop] = BEFORE.clients
    few = replace(laptop, grant=Grant(uids=(1000, 1001), gids=(5, 6)))
    return [
        narrowed(BEFORE),
        replace(BEFORE, clients=(few,), serial=2),
        BEFORE.with_client(DESK),
    ]


@pytest.mark.parametrize("seed", range(12))
def test_of_several_with_one_number_a_client_has_what_all_grant(tmp_path: Path, seed: int) -> None:
    """In whatever order and way a node learns of them; the next number holds by itself."""
    draw = Random(seed)
    machine = Machine(tmp_path, BEFORE)
    forks = of_one_number()
    draw.shuffle(forks)
    for at, description in enumerate(forks):
        learns(draw, machine, description)
        # A file that was replaced since is one that a node need not have looked at.
        if not at:
            before = machine.membership.principal(LAPTOP.public_key)
    machine.restart()
    assert grants(machine) == Grant(uids=(1000,), write=False)
    assert before is not None
    assert machine.membership.admits(before) == (before.grant == grants(machine))
    is_told = "each of laptop has only the rights" in machine.membership.narrowed
    assert is_told == (machine.membership.latest.clients[0].grant != grants(machine))
    assert machine.tell(signed(replace(BEFORE, serial=3))) == ""
    assert grants(machine) == BEFORE.clients[0].grant
    assert machine.membership.narrowed == ""
    assert not list(tmp_path.glob("*.other.*"))


def test_must_fail_where_the_first_of_one_number_counts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Others, "grant", lambda _self, _client, grant: grant)
    machine = Machine(tmp_path, BEFORE.with_client(DESK))
    machine.tell(signed(narrowed(BEFORE)))
    assert grants(machine).write, "which the administrator has taken from it"


def made_from(
    before: ClusterDescription, *seen: ClusterDescription, **changes: Any
) -> ClusterDescription:
    """The next description, as commands make it that have seen others, too."""
    known = before.following(seen)
    follows = {"follows": known.follows, "follows_from": known.follows_from}
    return replace(before, serial=before.serial + 1, **follows, **changes)


NARROWED = made_from(BEFORE, clients=narrowed(BEFORE).clients)
IGNORANT = [made_from(BEFORE, clients=(*BEFORE.clients, DESK))]  # on another machine
IGNORANT += [made_from(IGNORANT[0], client_share=40)]
IGNORANT += [made_from(IGNORANT[1], client_share=50)]


@pytest.mark.parametrize("seed", range(12))
def test_who_did_not_know_of_it_gives_no_right_back(tmp_path: Path, seed: int) -> None:
    """Another machine has signed more since. In whatever order and way a node learns of all."""
    draw = Random(seed)
    machine = Machine(tmp_path, BEFORE)
    learnt = [NARROWED, *IGNORANT]
    draw.shuffle(learnt)
    for each in learnt:
        learns(draw, machine, each)
    if draw.random() < 0.5:
        machine.restart()
    assert machine.membership.latest == IGNORANT[-1]
    assert not grants(machine).write
    assert "each of laptop has only the rights" in machine.membership.narrowed
    knowing = made_from(IGNORANT[-1], NARROWED)
    learns(draw, machine, knowing)
    assert grants(machine).write, "somebody who knew has given it again"
    assert machine.membership.narrowed == ""
    assert not list(tmp_path.glob("*.other.*"))
    learns(draw, machine, NARROWED)
    assert grants(machine).write


def test_nor_any_share_of_the_room(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    less = made_from(BEFORE, client_share=20)
    for each in (less, *IGNORANT):
        machine.tell(signed(each))
    assert IGNORANT[-1].client_share == 50
    assert machine.membership.share_of(CLIENT) == 0.2
    assert machine.membership.share_of(DESK.client) == 0.5
    clients = IGNORANT[-1].narrowed_by(less).clients
    machine.tell(signed(made_from(IGNORANT[-1], less, clients=clients)))
    assert machine.membership.share_of(CLIENT) == 0.2
    assert machine.membership.others.signed == ()


def test_must_fail_where_numbers_say_who_knew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ClusterDescription, "knows_of", lambda self, other: other.serial < self.serial
    )
    machine = Machine(tmp_path, BEFORE)
    for each in (NARROWED, *IGNORANT):
        machine.hear(signed(each))
    assert grants(machine).write, "which the administrator had taken from it"


@pytest.mark.parametrize("seed", range(4))
def test_what_was_followed_narrows_nothing_again(tmp_path: Path, seed: int) -> None:
    """A right was taken, and given again. Old descriptions come back; some nodes missed many."""
    draw = Random(seed)
    chain = [BEFORE, NARROWED, made_from(NARROWED, clients=BEFORE.clients)]
    for share in range(1, 2 * FOLLOWED):
        chain.append(made_from(chain[-1], client_share=share % 100 + 1))
    machine = Machine(tmp_path, draw.choice(chain[:3]))
    machine.hear(signed(chain[-1]))
    for each in draw.sample(chain, 20):
        learns(draw, machine, each)
    machine.restart()
    assert grants(machine).write
    assert machine.membership.others.signed == ()


def crowd(tmp_path: Path, seed: int) -> Machine:
    """Three machines know nothing of each other. A peer shows all that they have signed.

    The first has narrowed a grant, the second has changed other things many times, and the third
    has the highest number.
    """
    second = [IGNORANT[0]]
    for share in range(2 * OTHER_DESCRIPTIONS):
        second.append(made_from(second[-1], client_share=share + 50))
    third = replace(made_from(BEFORE, client_share=90), serial=second[-1].serial + 1)
    every = [NARROWED, *second, third]
    Random(seed).shuffle(every)
    machine = Machine(tmp_path, BEFORE)
    for each in every:
        machine.hear(signed(each))
    assert machine.membership.latest == third
    return machine


@pytest.mark.parametrize("seed", range(6))
def test_old_descriptions_crowd_nothing_out(tmp_path: Path, seed: int) -> None:
    assert not grants(crowd(tmp_path, seed)).write


def test_must_fail_where_each_old_description_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterDescription, "replaces", lambda *_: False)
    assert grants(crowd(tmp_path, 1)).write, "which the administrator had taken from it"


def given_again(tmp_path: Path) -> Machine:
    """A right was taken, and given again, and another machine knows of neither."""
    machine = Machine(tmp_path, BEFORE)
    for each in (NARROWED, made_from(NARROWED, clients=BEFORE.clients), *IGNORANT):
        machine.hear(signed(each))
    assert machine.membership.latest == IGNORANT[-1]
    machine.restart()
    machine.hear(signed(NARROWED))
    return machine


def test_what_was_given_again_is_not_taken_by_the_old_description(tmp_path: Path) -> None:
    assert grants(given_again(tmp_path)).write


def test_must_fail_where_what_was_followed_takes_rights_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterDescription, "replaces", lambda *_: False)
    assert not grants(given_again(tmp_path)).write


def test_what_is_followed_counts_for_what_its_follower_lacks() -> None:
    """Its signer knew of it, and has taken over neither whom it revokes nor its keys."""
    ghost = PastClient("ghost", ClientId(bytes(CLIENT_ID_BYTES)), None, 7)
    revoking = replace(BEFORE, serial=2, past_clients=(ghost,))
    assert not made_from(revoking, past_clients=()).replaces(revoking)
    assert made_from(revoking).replaces(revoking)
    assert not replace(revoking, serial=3).replaces(revoking), "it does not name it"


def test_a_description_names_the_latest_that_were_known() -> None:
    other, latest = replace(BEFORE, client_share=7), BEFORE
    assert not latest.knows_of(other)
    latest = made_from(latest, other)
    assert latest.knows_of(other)
    between = []
    for _ in range(FOLLOWED - 2):
        between.append(latest)
        latest = made_from(latest)
    assert cluster.decode(cluster.encode(latest), source="it") == latest
    assert len(latest.follows) == FOLLOWED
    assert latest.follows_from == BEFORE.serial
    assert not latest.knows_of(replace(BEFORE, client_share=8))
    assert all(map(latest.knows_of, (BEFORE, other, *between)))
    later = made_from(latest)
    assert len(later.follows) == FOLLOWED - 1, "of one number it lists all or none"
    assert later.knows_of(replace(BEFORE, client_share=8)), "of what is older nothing is told"
    assert not later.knows_of(replace(between[0], client_share=8))


def exchange(machines: Sequence[Machine], monkeypatch: pytest.MonkeyPatch) -> int:
    """Each node asks each other one, as it does once a minute. Returns what was sent."""
    sent = 0

    async def ask_all(
        _peers: object, requests: dict[int, DescriptionRequest], *_: Any, **__: Any
    ) -> Any:
        nonlocal sent
        sent += len(requests)
        step = [MembershipServer(each.membership).step for each in machines]
        peer = sender(NEW.nodes[0].public_key)
        return {
            node: step[node](MemoryStorage(), peer, request, b"", 0).reply
            for node, request in requests.items()
        }

    monkeypatch.setattr(comparison, "ask_all", ask_all)
    for machine in machines:
        work = Comparison(
            NodeId(0), BEFORE, Peers(ThresholdQuorums(BEFORE.query_update)), machine.membership
        )
        for node, other in enumerate(machines):
            known = other.membership
            report = HealthReply(
                *(1, 1, True, (), 1, 1, 1, 1, 1, 1),
                description_serial=known.serial,
                description_digest=known.latest.digest,
                other_descriptions=known.others.digests,
            )
            with pytest.raises(StopIteration):
                work._fetch(NodeId(node), report).send(None)
    return sent


@pytest.mark.parametrize("later", [replace(THERE, serial=2), *LATER_THERE[1:]])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_revocation_reaches_nodes_that_have_heard_of_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: ClusterDescription, restarts: bool
) -> None:
    """One node has heard of it; it takes over what was signed elsewhere, and still shows it."""
    machines = []
    for node in range(4):
        (tmp_path / str(node)).mkdir()
        machines.append(Machine(tmp_path / str(node), BEFORE))
    machines[0].tell(signed(HERE))
    for each in machines[1:3]:
        each.tell(signed(later))
    machines[0].hear(signed(later))
    if restarts:
        for each in machines:
            each.restart()
    assert [each.knows_laptop for each in machines] == [False, True, True, True]
    exchange(machines, monkeypatch)
    exchange(machines, monkeypatch)
    assert not any(each.knows_laptop for each in machines)
    assert exchange(machines, monkeypatch) == 0, "each is read once"
    for each in machines:
        each.restart()
    assert not any(each.knows_laptop for each in machines)
    assert exchange(machines, monkeypatch) == 0
    last = later.with_revocations_of(HERE)
    for each in machines:
        assert each.tell(signed(replace(last, serial=100))) == ""
        assert each.membership.others.signed == ()


def test_must_fail_where_what_takes_rights_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Others, "add", lambda *_: None)
    with pytest.raises(AssertionError):
        test_a_revocation_reaches_nodes_that_have_heard_of_another_machine(
            tmp_path, monkeypatch, LATER_THERE[1], restarts=False
        )


def test_a_node_keeps_few_others(tmp_path: Path) -> None:
    """Though the administrator signs one number again and again; whom any revokes stays noted."""
    machine = Machine(tmp_path, BEFORE)
    for serial in range(3, 12):
        machine.tell(signed(replace(BEFORE, serial=serial + 20)))
        revoked = PastClient("ghost", ClientId(bytes([serial]) * CLIENT_ID_BYTES), None, serial)
        machine.tell(signed(replace(BEFORE, serial=serial, past_clients=(revoked,))))
    assert len(machine.membership.others.signed) == OTHER_DESCRIPTIONS
    assert len(list(tmp_path.glob("*.other.*.toml"))) == OTHER_DESCRIPTIONS
    machine.restart()
    assert len(machine.membership.others.signed) == OTHER_DESCRIPTIONS
    assert all(
        ClientId(bytes([each]) * CLIENT_ID_BYTES) in machine.membership._revoked
        for each in range(3, 12)
    )


def read_of_replays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many descriptions a node reads while a peer sends it two that are older, ten times."""
    machine = Machine(tmp_path, made_from(NARROWED))
    elsewhere = signed(replace(BEFORE, cluster_id=b"e" * 16))
    read: list[bytes] = []
    verified = description_files.verified
    monkeypatch.setattr(
        description_files,
        "verified",
        lambda *a, **more: (read.append(a[0]), verified(*a, **more))[1],
    )
    for _ in range(10):
        for each in (signed(BEFORE), elsewhere):
            machine.hear(each)
    return len(read)


def test_what_a_peer_sends_again_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_of_replays(tmp_path, monkeypatch) == 2


def test_must_fail_where_what_was_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveMembership, "lacks", lambda *_: True)
    assert read_of_replays(tmp_path, monkeypatch) == 20


# --- what is sent -----------------------------------------------------------------------------


def replays(draw: Random, machine: Machine) -> str:
    """Somebody brings back any description that was ever signed, or one that was not."""
    forged = signed(replace(BEFORE, serial=99), administrator=LAPTOP)
    sent = draw.choice([signed(NEW.description), signed(BEFORE), signed(AFTER), forged])
    how = draw.choice(["copied", "told", "offered", "restarted"])
    if how == "copied" and sent is not forged:
        machine.copy_in(sent.description)
    elif how == "told":
        machine.tell(sent)
    elif how == "offered":
        machine.hear(sent)
    else:
        machine.restart()
    return f"{how} {sent.description.serial}"


@pytest.mark.parametrize("seed", range(20))
def test_no_replay_of_old_descriptions_brings_a_revoked_client_back(
    tmp_path: Path, seed: int
) -> None:
    draw = Random(seed)
    machine = Machine(tmp_path, BEFORE)
    assert machine.knows_laptop
    machine.tell(signed(AFTER))
    before: list[str] = []
    for _ in range(12):
        before.append(replays(draw, machine))
        assert not machine.knows_laptop, before


def test_one_peer_that_has_heard_is_enough(tmp_path: Path) -> None:
    """The others lie: they offer old descriptions, and forge new ones."""
    machine = Machine(tmp_path, BEFORE)
    for sent in (signed(NEW.description), signed(replace(BEFORE, serial=9), LAPTOP), signed(AFTER)):
        machine.hear(sent)
    assert not machine.knows_laptop
    machine.restart()
    assert not machine.knows_laptop


@pytest.mark.parametrize(
    ("sent", "objection"),
    [
        (signed(BEFORE), "sent an older one, number 1"),
        (signed(replace(BEFORE, serial=2)), "sent another one, number 2"),
        (signed(replace(BEFORE, serial=9), LAPTOP), "not signed by this cluster's administrator"),
        (SignedDescription(AFTER, b"", b""), "not signed by this cluster's administrator"),
        (signed(AFTER), ""),
    ],
)
def test_the_administrator_is_told_what_a_node_objects_to(
    tmp_path: Path, sent: SignedDescription, objection: str
) -> None:
    machine = Machine(tmp_path, AFTER)
    found = machine.tell(sent)
    assert objection in found
    assert bool(found) == bool(objection)


def test_clients_are_cut_off_before_the_administrator_hears_of_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    changed = []
    machine.membership.on_change = lambda: changed.append(machine.membership.serial)
    machine.tell(signed(AFTER))
    assert changed == [2]
    machine.tell(signed(AFTER))
    assert changed == [2]


def test_who_may_bring_and_who_may_have_a_description(tmp_path: Path) -> None:
    machine = Machine(tmp_path, AFTER)
    step = MembershipServer(machine.membership).step
    later = signed(replace(BEFORE, serial=9))
    bring = Announcement(later.encoded, later.signature)
    client, peer = sender(LAPTOP.public_key), sender(NEW.nodes[1].public_key)
    assert (client.role, peer.role) == (Role.CLIENT, Role.NODE)
    for other in (client, peer):
        assert isinstance(step(MemoryStorage(), other, bring, b"", 0).reply, Refused)
    for other in (client, peer, ADMINISTRATOR):
        reply = step(MemoryStorage(), other, DescriptionRequest(), b"", 0).reply
        assert isinstance(reply, DescriptionReply)
        administrator = NEW.administrator.public_key
        found = description_files.verified(
            reply.encoded, reply.signature, administrator=administrator, source="it"
        )
        assert found.description == AFTER


def test_what_a_node_has_seen_survives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment of its being kept: the older or the newer one is there, signed."""
    after = BEFORE.without_client("laptop", at_s=7)
    rename = Path.replace
    for survived in range(3):
        directory = tmp_path / str(survived)
        directory.mkdir()
        machine = Machine(directory, BEFORE)
        machine.copy_in(after)
        replaced = count()

        def crashing(
            self: Path, target: Path, last: int = survived, replaced: Iterator[int] = replaced
        ) -> Path:
            if next(replaced) == last:
                raise KeyboardInterrupt
            return rename(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", crashing)
            if survived < 2:
                with pytest.raises(KeyboardInterrupt):
                    machine.membership.refresh()
            else:
                machine.membership.refresh()
        found = description_files.load(directory / "description.toml")
        assert found == (after if survived == 2 else BEFORE)
        machine.restart()
        assert not machine.knows_laptop


def test_a_nodes_own_description_is_not_swapped(tmp_path: Path) -> None:
    """What it has seen is as good as its signature, and of one cluster."""
    machine = Machine(tmp_path, BEFORE)
    kept = tmp_path / "description.toml"
    whole = kept.read_bytes()
    kept.write_bytes(whole.replace(b"serial = 1", b"serial = 9"))
    with pytest.raises(UsageError, match=r"is not signed .*remove"):
        machine.restart()
    kept.write_bytes(whole)
    machine.restart()
    other = cluster.create(["unix:/a"], t=0, b=0, draw=lambda length: bytes([next(DRAWS)]) * length)
    path = tmp_path / "other.toml"
    description_files.store(path, other.description, other.administrator)
    with pytest.raises(UsageError, match="describes another cluster"):
        latest_description(path, kept)


def test_must_fail_where_any_signed_description_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClusterDescription, "is_superseded_by", lambda *_: True)
    monkeypatch.setattr(Others, "grant", lambda _self, _client, grant: grant)
    machine = Machine(tmp_path, narrowed(BEFORE))
    machine.copy_in(BEFORE)
    sender = machine.membership.principal(LAPTOP.public_key)
    assert sender is not None
    assert sender.grant.write, "which the administrator had taken from it"


@pytest.mark.parametrize("how", [Machine.tell, Machine.hear])
def test_must_fail_where_a_lower_serial_is_taken_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[..., object]
) -> None:
    monkeypatch.setattr(ClusterDescription, "is_superseded_by", lambda *_: True)
    machine = Machine(tmp_path, AFTER)
    how(machine, signed(BEFORE))
    assert machine.membership.latest.client(BEFORE.clients[0].client) is not None


def test_must_fail_where_signatures_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description_files, "_is_signed", lambda *_: True)
    machine = Machine(tmp_path, AFTER)
    machine.hear(signed(replace(THERE, serial=9), LAPTOP))
    assert machine.membership.principal(DESK.public_key) is not None


def test_must_fail_where_nothing_is_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path, BEFORE)
    machine.copy_in(BEFORE.without_client("laptop", at_s=7))
    assert not machine.knows_laptop
    machine.copy_in(BEFORE)
    (tmp_path / "description.toml").unlink()
    machine.restart()
    assert machine.knows_laptop


# --- history that is let go -----------------------------------------------------------------------


def letting_go(description: ClusterDescription) -> ClusterDescription:
    """The decision to let all history go."""
    return description.letting_go(before_s=1_790_000_000, at_s=1_790_001_000)


def test_history_is_let_go_by_what_the_administrator_has_signed_alone(tmp_path: Path) -> None:
    """A client's signature, a peer's word, and another cluster's administrator are nothing."""
    machine = Machine(tmp_path, BEFORE)
    for forger in (LAPTOP, NEW.nodes[1], Identity.generate(b"o" * 32)):
        machine.hear(signed(letting_go(BEFORE), forger))
        assert machine.tell(signed(letting_go(BEFORE), forger))
    hidden = signed(BEFORE)
    machine.hear(SignedDescription(BEFORE, signed(letting_go(BEFORE)).encoded, hidden.signature))
    assert machine.membership.latest.let_go == ()
    machine.hear(signed(letting_go(BEFORE)))
    assert [each.number for each in machine.membership.latest.let_go] == [2]
    assert not machine.membership.is_partial


def test_an_older_description_takes_no_decision_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path, letting_go(BEFORE))
    machine.hear(signed(BEFORE))
    machine.copy_in(BEFORE)
    machine.restart()
    assert len(machine.membership.latest.let_go) == 1
    later = machine.membership.latest.without_client("laptop", at_s=7)
    machine.hear(signed(later))
    assert machine.membership.latest.let_go == letting_go(BEFORE).let_go


@pytest.mark.parametrize(
    "made",
    [
        lambda: BEFORE.letting_go(before_s=1_790_000_500, at_s=1_790_001_000),
        lambda: BEFORE.letting_go(before_s=1_790_001_001, at_s=1_790_001_000, client=CLIENT),
        lambda: BEFORE.letting_go(before_s=1_790_000_000, at_s=1_790_001_000, since_s=5),
    ],
)
def test_what_may_still_be_the_truth_is_not_let_go(made: Callable[[], ClusterDescription]) -> None:
    """Whatever is signed: clients date changes back, and so far nothing is known to be the past."""
    with pytest.raises(UsageError):
        made()
