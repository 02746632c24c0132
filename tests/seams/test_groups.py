"""The groups that a client claims hold only as far as its signed grant has them.

A user is in no group but those that the administrator has signed for its client. Whatever else a
client claims, nodes refuse: for objects and for blocks alike, now and in the past.
"""

from __future__ import annotations

import errno
import stat

import pytest

from bftfs import credentials
from bftfs.asking.refusal import Refused
from bftfs.credentials import NOBODY, Credentials, Grant
from bftfs.errors import AdmissionRefused, FileSystemError
from bftfs.filesystem.attributes import Changes
from bftfs.filesystem.inode import Truncation
from bftfs.filesystem.objects import NoArguments
from bftfs.filesystem.registry import GET_ATTRIBUTES, TRUNCATE
from bftfs.identifiers import NodeId, ObjectId
from bftfs.query_update.history import TIMESTAMP_BYTES, LogicalTimestamp
from bftfs.query_update.messages import PastQuery, Query, Status, VersionsRequest
from bftfs.query_update.object_type import encode_record
from tests.seams.world import STRANGER, STRANGERS_GRANT, Hand, User, World, accepted, refused
from tests.simulation.mutants import believe_claims_of_groups

WHEEL = 10  # the group of the file that the stranger is after
MEMBERS_GRANT = Grant(uids=(STRANGER.uid,), gids=(STRANGER.gid, WHEEL))
EVERYONE = range(6)
LATEST = LogicalTimestamp(b"\xff" * TIMESTAMP_BYTES)

CLAIMS = [
    STRANGER._replace(gid=WHEEL),
    STRANGER._replace(groups=(WHEEL,)),
    STRANGER._replace(groups=(STRANGER.gid, *range(100, 162), WHEEL)),
]
MEMBER = CLAIMS[1]


class Office:
    """A file of root's, which a group may write."""

    def __init__(self) -> None:
        self.world = World(verifying=False)
        self.root: User = self.world.user("root")
        self.root.format()
        self.wages: ObjectId = self.root.make("wages", "1000 each", mode=0o660)
        changes = Changes(gid=WHEEL)
        self.root.run(self.root.files.change_attributes(self.wages, changes, self.root.who))

    def writes(self, hand: Hand, who: Credentials) -> dict[int, int]:
        """The refusals of a block that the hand writes for `who`."""
        layout = self.root.attributes(self.wages).layout
        assert layout is not None
        version = hand.version(layout.block(self.wages, 0), "9999 each", self.world.now_us)
        replies = hand.write(version, EVERYONE, who=who)
        assert len(accepted(replies)) + len(refused(replies)) == self.world.sizes.n
        return refused(replies)

    def stretches(self, hand: Hand, who: Credentials) -> list[Status]:
        """What nodes say to an update that makes the file longer, unless they refuse it."""
        return hand.update(self.wages, TRUNCATE, Truncation(100, 1, 0), who)


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.mark.parametrize("who", CLAIMS)
def test_a_group_that_is_only_claimed_opens_nothing(office: Office, who: Credentials) -> None:
    hand = office.world.hand("stranger", grant=STRANGERS_GRANT)
    assert office.writes(hand, who) == dict.fromkeys(EVERYONE, errno.EPERM)
    assert office.stretches(hand, who) == []
    assert office.root.read(office.wages) == "1000 each"
    assert office.root.attributes(office.wages).size == len("1000 each")


@pytest.mark.parametrize("who", CLAIMS)
def test_must_fail_nodes_that_believe_the_client(
    office: Office, who: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    believe_claims_of_groups(monkeypatch)
    hand = office.world.hand("stranger", grant=STRANGERS_GRANT)
    assert office.writes(hand, who) == {}
    assert Status.SUCCESS in office.stretches(hand, who)
    assert office.root.attributes(office.wages).size == 100


@pytest.mark.parametrize("who", CLAIMS)
def test_questions_with_such_claims_are_not_answered(office: Office, who: Credentials) -> None:
    hand = office.world.hand("stranger", grant=STRANGERS_GRANT)
    asking = encode_record(NoArguments())
    nobody = NodeId(0)
    for question in (
        Query((office.wages,), GET_ATTRIBUTES, asking, *who, nobody),
        PastQuery(office.wages, office.world.now_us, b"", GET_ATTRIBUTES, asking, *who, nobody),
        VersionsRequest(office.wages, LATEST, *who, 1, (), nobody),
    ):
        replies = hand.ask_all(question)
        assert refused(replies) == dict.fromkeys(EVERYONE, errno.EPERM), question
        assert all("gid" in each.reason for each in replies.values() if isinstance(each, Refused))


def test_without_such_claims_permissions_decide(office: Office) -> None:
    hand = office.world.hand("stranger", grant=STRANGERS_GRANT)
    codes = office.writes(hand, STRANGER).values()
    assert set(codes) == {errno.EACCES}
    assert len(codes) >= office.world.sizes.query_update.q  # a node that is behind does not know
    with pytest.raises(FileSystemError) as refusal:
        office.world.user("visitor", STRANGER, grant=STRANGERS_GRANT).read(office.wages)
    assert refusal.value.code == errno.EACCES


def test_signed_groups_count(office: Office) -> None:
    assert office.writes(office.world.hand("member", grant=MEMBERS_GRANT), MEMBER) == {}
    member = office.world.user("mount of the member", MEMBER, grant=MEMBERS_GRANT)
    assert member.read(office.wages) == "1000 each"
    member.put(office.wages, "1100")
    assert office.root.read(office.wages) == "1100 each"


def test_groups_are_those_of_the_key_that_asks(office: Office) -> None:
    """Two clients that help each other have each its own users and groups, and not both's."""
    friend = Credentials(uid=STRANGER.uid + 1, gid=WHEEL)
    grant = Grant(uids=(friend.uid,), gids=(WHEEL,))
    one = office.world.hand("stranger", grant=STRANGERS_GRANT, allies=(5,))
    other = office.world.hand("friend", grant=grant, allies=(5,))
    everywhere = dict.fromkeys(EVERYONE, errno.EPERM)
    assert office.writes(one, friend) == office.writes(one, MEMBER) == everywhere
    assert office.writes(other, MEMBER) == everywhere
    assert office.writes(other, friend) == {}


def test_who_may_act_as_root_may_claim_any_group(office: Office) -> None:
    chief = office.world.hand("chief", grant=Grant(uids=(0,)))
    assert office.writes(chief, Credentials(0, 77, (78,))) == {}


def test_root_of_a_squashed_machine_is_nobody(office: Office) -> None:
    grant = Grant(squash_root=True)
    hand = office.world.hand("its root", grant=grant)
    for who in (
        Credentials(0, 0),
        Credentials(0, WHEEL),
        Credentials(7, 0),
        Credentials(7, 7, (0,)),
    ):
        assert office.writes(hand, who) == dict.fromkeys(EVERYONE, errno.EPERM)
    claimed = grant.claimable(Credentials(0, 0, (WHEEL,)))
    with pytest.raises(FileSystemError) as refusal:
        office.world.user("its mount", claimed, grant=grant).read(office.wages)
    assert refusal.value.code == errno.EACCES
    assert office.writes(hand, MEMBER) == {}  # of other users its kernel tells


def test_must_fail_nodes_that_believe_a_squashed_root(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "_of_root", lambda _: "")
    hand = office.world.hand("its root", grant=Grant(squash_root=True))
    assert office.writes(hand, Credentials(0, 0)) == {}


def test_a_mount_leaves_out_groups_that_are_not_granted(office: Office) -> None:
    """The kernel knows of them: it lets the program open the file, and the mount must not."""
    office.root.chmod(office.wages, 0o664)
    known = STRANGER._replace(groups=(WHEEL,))
    with pytest.raises(AdmissionRefused):
        office.world.user("naive", known, grant=STRANGERS_GRANT).put(office.wages, "9999")
    claimed = STRANGERS_GRANT.claimable(known)
    mount = office.world.user("mount", claimed, grant=STRANGERS_GRANT)
    assert mount.read(office.wages) == "1000 each"
    with pytest.raises(FileSystemError) as refusal:
        mount.run(mount.files.open(office.wages, 1, claimed))
    assert refusal.value.code == errno.EACCES


def test_what_nobodys_group_makes_is_of_that_group(office: Office) -> None:
    office.root.run(
        office.root.files.change_attributes(
            office.root.files.root, Changes(mode=stat.S_IFDIR | 0o777), office.root.who
        )
    )
    grant = Grant(uids=(STRANGER.uid,))
    claimed = grant.claimable(STRANGER)
    made = office.world.user("mount", claimed, grant=grant).make("mine", "x", mode=0o600)
    assert office.root.attributes(made).gid == NOBODY.gid
