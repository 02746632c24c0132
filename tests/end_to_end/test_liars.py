"""Who may do what, and know what: lying clients and nodes against real nodes and mounts.

Each rule is attacked in `tests/seams` and `tests/simulation` in every variety. Here the nodes and
the mounts are processes. One of six nodes lies; strangers have a key, speak the protocols as they
like, and know the liar's key. In the end the other nodes are replaced by ones without the rules
(`tests.integration.eager_node credulous`), and the same attacks succeed.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import socket
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from bftfs import description_files, limits
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.conversation import Conversation, Receive, Send
from bftfs.credentials import Credentials, Grant
from bftfs.crypto.keys import Identity, read_identity, write_identity
from bftfs.description_files import SignedDescription
from bftfs.envelope import Announcement
from bftfs.errors import BftfsError
from bftfs.filesystem import registry
from bftfs.filesystem.directory import Creation, Name
from bftfs.filesystem.inode import Truncation
from bftfs.filesystem.objects import NoArguments
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, block_id, object_id
from bftfs.limits import MIB, SECOND_US
from bftfs.query_update.history import ZERO, assemble, parse_history
from bftfs.query_update.messages import InlineUpdate, Query, QueryReply, Status, Update, UpdateReply
from bftfs.query_update.object_type import encode_record
from bftfs.read_write.messages import ReadRequest
from bftfs.retention import LetGo
from bftfs.runtime import clock
from nodes.connections import STRANGERS_MAX
from tests.chaos.clock import Clock, build
from tests.end_to_end.attacked import BEHIND, CORRECT, GRANTS, LIAR, NODES, Attacked, stopped, write
from tests.end_to_end.cluster import Cluster, CommandFailed, bftfs
from tests.end_to_end.test_history import now
from tests.end_to_end.watchdog import Watchdog
from tests.integration.deployment import await_that
from tests.integration.eager_node import CLAIMED
from tests.integration.process_hand import ProcessHand
from tests.integration.test_node import metric, page
from tests.integration.test_protocols import Client
from tests.seams.test_barriers import histories
from tests.seams.world import STRANGER, STRANGERS_GRANT, Version, accepted, as_sent, refused

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

MINE, EVIL = "what root wrote", "EVIL!!"
PROGRAM = "tests.integration.eager_node"
CAREFUL, CREDULOUS, FORGING = (PROGRAM, "careful"), (PROGRAM, "credulous"), (PROGRAM, "forging")
WHEEL = 10  # a group of which the stranger is not
ROOT = Credentials(0, 0)
KEYS = tuple(f"key{number}" for number in range(4))
BEGINNERS = ("beginner", "late-beginner")  # clients that begin something
POOL_BYTES = 16 * MIB
SHARE = 50  # of the pool, in percent
ITEM = limits.BLOCK_BYTES_MAX  # of which a node has a third
WITHIN_SHARE = POOL_BYTES * SHARE // 100 // (ITEM // 3 + 4096)  # items
PLANTED = (0, 1)  # who host a version that nobody sees
STEP_US = limits.LET_GO_SETTLED_US + 60 * SECOND_US
CROWD = STRANGERS_MAX + 16  # connections of strangers
ATTEMPTS = 8  # at a file that node 5 has not heard of
WAITING = 300  # requests, of which a node lets one client have 128 wait at most


class Times:
    """The clocks of the nodes, the mounts, the commands and this process."""

    def __init__(self, others: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        self._others, self._ahead_us, right_us = others, 0, clock.now_us
        monkeypatch.setattr(clock, "now_us", lambda: right_us() + self._ahead_us)

    def pass_by(self, duration_us: int) -> None:
        self._ahead_us += duration_us
        self._others.step(self._ahead_us)


@dataclass
class Town:
    """All that is attacked."""

    attacked: Attacked
    times: Times

    @property
    def data(self) -> Path:
        return self.attacked.cluster.data

    @property
    def described(self) -> SignedDescription:
        return description_files.read(self.attacked.deployment.directory.description)

    def forge(self, described: ClusterDescription | SignedDescription) -> SignedDescription:
        """What the liar shows its peers as the latest description, signed as it can.

        All correct nodes have asked for it then, and again, which they do when they have judged it.
        """
        place = self.attacked.deployment.node(LIAR).path
        if isinstance(described, ClusterDescription):
            described = description_files.signed(described, Identity(bytes(31) + b"!"))
        for name in ("forged.toml", "told"):
            (place / name).unlink(missing_ok=True)
        description_files.signature_path(place / "forged.toml").write_bytes(described.signature)
        (place / "new").write_bytes(described.encoded)
        (place / "new").rename(place / "forged.toml")
        told = place / "told"

        def have_judged() -> bool:
            asked = Counter(map(int, told.read_text().split())) if told.exists() else Counter()
            return all(asked[node] >= 2 for node in CORRECT)

        await_that(have_judged)
        return described

    def be_silent(self) -> None:
        """The liar shows what it has again."""
        (self.attacked.deployment.node(LIAR).path / "forged.toml").unlink()

    def another(self, name: str) -> str:
        """A new client that may do what a stranger may."""
        words = ("--uid", str(STRANGER.uid), "--gid", str(STRANGER.gid))
        bftfs("cluster", "add-client", "--data", self.data, name, *words)
        return name

    def revoke(self, name: str) -> str:
        return bftfs("cluster", "revoke-client", "--data", self.data, name)


@pytest.fixture(scope="module")
def town(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Town]:
    grants = {
        **GRANTS,
        "desk": Grant(squash_root=True),
        **dict.fromkeys((*KEYS, *BEGINNERS), STRANGERS_GRANT),
    }
    if shutil.which("gcc") is None:
        pytest.skip("gcc is needed to set clocks: apt-get install build-essential")
    with pytest.MonkeyPatch.context() as monkeypatch:
        machine = Clock(build(playground), playground / "offset")
        for name, value in machine.environment.items():
            monkeypatch.setenv(name, value)
        attacked = Attacked(Cluster(playground / "liars"), grants)
        deployment = attacked.deployment
        write_identity(deployment.directory.administrator_key, deployment.administrator)
        deployment.describe(replace(deployment.description, client_share=SHARE))
        for node in NODES:
            deployment.node(node).configuration.write_text(f"pool_bytes = {POOL_BYTES}\n")
        try:
            attacked.run(CAREFUL, FORGING)
            with attacked.mounted():
                attacked.owner.chmod(0o777)
                yield Town(attacked, Times(machine, monkeypatch))
        finally:
            deployment.close()


@pytest.fixture
def attacked(guarded: None, town: Town) -> Attacked:
    return town.attacked


# --- claims that no grant covers ------------------------------------------------------------------

CLAIMS = {
    "stranger": (
        STRANGER._replace(gid=WHEEL),
        STRANGER._replace(groups=(WHEEL,)),
        STRANGER._replace(uid=0),
    ),
    "desk": (ROOT, Credentials(7, 7, (0,))),  # root of a machine whose root is nobody
}


GROUPS = {"stranger": WHEEL, "desk": 0}  # of the file that they are after


class Claimed(NamedTuple):
    """What came of claims."""

    refusals: list[dict[int, int]]  # of correct nodes, for each request
    statuses: set[Status]  # that they gave updates
    size: int  # of the file, in the end
    contents: set[str]  # that both mounts show


def claimed(attacked: Attacked, name: str) -> Claimed:
    """A client claims to be who may use a file of root's.

    It writes and reads its block, asks about it, and makes it longer; with each claim.
    """
    file = attacked.new_name("wages")
    write(attacked.owner / file, 0o660, MINE)
    os.chown(attacked.owner / file, 0, GROUPS[name])
    identifier, found = attacked.attributes(file)
    assert found.layout is not None
    block = found.layout.block(identifier, 0)
    question = encode_record(NoArguments())
    refusals, statuses = [], set()
    with attacked.hand(name) as hand:
        for who in CLAIMS[name]:
            version = hand.version(block, EVIL, clock.now_us())
            for replies in (
                hand.write(version, NODES, who=who),
                hand.ask_all(ReadRequest(block, None, True, 8, *who)),
                hand.ask_all(Query((identifier,), registry.GET_ATTRIBUTES, question, *who, LIAR)),
            ):
                assert replies.keys() == {*NODES}
                refusals.append(refused({node: replies[node] for node in CORRECT}))
            longer = Truncation(100, 1, 0)
            statuses |= {*hand.update(identifier, registry.TRUNCATE, longer, who, asked=CORRECT)}
    mounts = attacked.owner, attacked.other
    contents = {(mount / file).read_text() for mount in mounts}
    return Claimed(refusals, statuses, (attacked.other / file).stat().st_size, contents)


@pytest.mark.parametrize("name", CLAIMS)
def test_what_a_client_claims_opens_nothing(attacked: Attacked, name: str) -> None:
    found = claimed(attacked, name)
    everywhere = dict.fromkeys(CORRECT, errno.EPERM)
    assert found == Claimed([everywhere] * 3 * len(CLAIMS[name]), set(), len(MINE), {MINE})


# --- names ----------------------------------------------------------------------------------------

IMPOSSIBLE = {
    b"": errno.ENOENT,
    b".": errno.EEXIST,
    b"..": errno.EEXIST,
    b"../../etc/passwd": errno.EINVAL,
    b"not\0whole": errno.EINVAL,
    b"long" * 64: errno.ENAMETOOLONG,
}
FALSE_LINE = b"x\n2026-11-22T08:00:00.000000+00:00  root  uid 0   rmdir important\x1b[2K"


class Thief(Client):
    """Somebody with a key, who makes what she likes in the root directory, without a kernel."""

    def __init__(self, attacked: Attacked, name: str) -> None:
        deployment = attacked.deployment
        self.root = deployment.description.root
        deployment.clients.append(read_identity(deployment.directory.client_key(name)))
        super().__init__(deployment, len(deployment.clients) - 1)

    def update(self, objects: tuple[ObjectId, ...], method: str, arguments: Any) -> int:
        """0, or why not."""
        try:
            self.network.perform(self.objects.update(objects, method, arguments, STRANGER))
        except BftfsError as error:
            return int(getattr(error, "code", errno.EIO))
        return 0

    def make(self, inode: ObjectId, name: bytes) -> int:
        made = Creation(name, stat.S_IFREG | 0o644, 0, 0, b"", limits.BLOCK_BYTES_DEFAULT)
        return self.update((self.root, inode), registry.CREATE, made)

    def remove(self, inode: ObjectId, name: bytes) -> int:
        return self.update((self.root, inode), registry.UNLINK, Name(name))


def new_inode() -> ObjectId:
    return object_id(ObjectKind.INODE, placement=0, unique=os.urandom(14))


def test_impossible_names_are_made_by_nobody(attacked: Attacked) -> None:
    thief = Thief(attacked, "stranger")
    before = set(os.listdir(attacked.other))
    with thief.network:
        said = {name: thief.make(new_inode(), name) for name in IMPOSSIBLE}
        assert said == IMPOSSIBLE
        assert thief.make(new_inode(), FALSE_LINE) == 0
    assert {*os.listdir(attacked.owner)} == before | {os.fsdecode(FALSE_LINE)}
    printed = bftfs("log", attacked.owner)
    assert r"$'x\n2026-11-22" in printed
    assert all(line.isprintable() for line in printed.replace("\t", " ").splitlines())
    assert not any(line.startswith("2026-11-22T08") for line in printed.splitlines())


def brought_back(attacked: Attacked) -> int:
    """What a client is told that makes a file again that was removed, with its inode."""
    thief, inode = Thief(attacked, "stranger"), new_inode()
    name = attacked.new_name("removed")
    with thief.network:
        assert thief.make(inode, name.encode()) == 0
        await_that((attacked.owner / name).exists)  # a mount may believe for a while that it is not
        (attacked.owner / name).unlink()
        said = thief.make(inode, name.encode())
    assert (attacked.other / name).exists() == (said == 0)
    return said


def test_a_removed_file_is_not_brought_back(attacked: Attacked) -> None:
    assert brought_back(attacked) == errno.ESTALE


# --- clients that were revoked --------------------------------------------------------------------


def served(attacked: Attacked, name: str) -> set[int]:
    """The correct nodes that answer a client's questions."""
    question = Query((attacked.deployment.description.root,), "", b"", 0, 0, (), LIAR)
    with attacked.hand(name) as hand:
        replies = hand.ask_all(question)
    return {node for node in CORRECT if isinstance(replies.get(node), QueryReply)}


def readmitted(town: Town) -> tuple[set[int], set[int]]:
    """A client is revoked. Then a reader brings a description that lists it, and a liar shows it.

    The administrator has signed it, and no node has read it. The correct nodes that serve the
    revoked client after that, and those that say that theirs is the old one.
    """
    attacked = town.attacked
    name = town.another(attacked.new_name("eve"))
    before = town.described.description
    more = ClientEntry(attacked.new_name("more"), Identity(os.urandom(32)).public_key)
    other = description_files.signed(before.with_client(more), attacked.deployment.administrator)
    assert served(attacked, name) == {*CORRECT}
    told = town.revoke(name)
    assert "Nodes 0, 1, 2, 3, 4, 5 have cut it off." in told
    assert not served(attacked, name)
    with attacked.hand("reader") as reader:
        said = reader.ask_all(Announcement(other.encoded, other.signature))
        assert {said[node].code for node in CORRECT} == {errno.EACCES}
    town.forge(other)
    pages = {node: page(attacked.deployment, "/health", node)[1] for node in CORRECT}
    outdated = {node for node, health in pages.items() if "is older than its peers'" in health}
    serving = served(attacked, name)
    town.be_silent()
    return serving, outdated


def test_an_old_description_admits_nobody_again(town: Town, guarded: None) -> None:
    assert readmitted(town) == (set(), set())


# --- what a client has begun ----------------------------------------------------------------------


def is_quiet(attacked: Attacked) -> bool:
    """Whether no correct node knows of an update that may be incomplete."""
    possible = "bftfs_possible_objects"
    return not any(metric(attacked.deployment, possible, node) for node in CORRECT)


def finished_late(town: Town, name: str, *, is_settled: bool) -> tuple[int, int]:
    """The size of a file before and after somebody finishes what a client began, and left at few.

    The client has been revoked since. A reader finishes the update, with the word of the nodes that
    have it, and of the liar. If nodes settle what clients leave, they have done so before.
    """
    attacked = town.attacked
    file = attacked.new_name("begun")
    write(attacked.owner / file, 0o666, MINE)
    identifier, found = attacked.attributes(file)
    with attacked.hand(name) as client:
        longer = Truncation(100, 1, 0)
        update = client.prepared(identifier, registry.TRUNCATE, longer, STRANGER)
        replies = client.ask(dict.fromkeys(PLANTED, (update, b"")))
        assert [reply.status for reply in replies.values()] == [Status.SUCCESS] * len(PLANTED)
        author = client.client
    town.revoke(name)
    if is_settled:
        await_that(lambda: is_quiet(attacked))
        _, found = attacked.attributes(file)
    with attacked.hand("reader") as reader:
        known = histories(reader, identifier)
        begun = known[NodeId(PLANTED[0])]
        shown = {NodeId(node): known[NodeId(node)] for node in PLANTED}
        shown[LIAR] = reader.forged(LIAR, identifier, begun.history)
        evidence, authenticators, _ = assemble(identifier, shown)
        inline = InlineUpdate(update.conditioned, author, evidence, authenticators, LIAR)
        reader.ask_all(inline)
    return found.size, attacked.attributes(file)[1].size


def test_what_a_revoked_client_began_is_not_finished_later(town: Town, guarded: None) -> None:
    """Nodes have finished it within seconds, or left it behind."""
    before, after = finished_late(town, "beginner", is_settled=True)
    assert before == after


# --- the room of a stolen key, and how it is got back ---------------------------------------------


class Loot:
    """A file of a thief's, and as much in it as nodes take."""

    def __init__(self, attacked: Attacked, name: str) -> None:
        self.attacked, self.thief = attacked, Thief(attacked, name)
        self.inode, self.name = new_inode(), attacked.new_name("loot")
        self._hand = attacked.hand(name)
        self._blocks = itertools.count()
        with self.thief.network:
            assert self.thief.make(self.inode, self.name.encode()) == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._hand.network.close()

    def add(self) -> dict[int, int]:
        """Write one more block, as large as may be; the codes of correct nodes that refuse it."""
        block = block_id(self.inode, incarnation=0, number=next(self._blocks))
        version = Version(self._hand, block, os.urandom(ITEM), clock.now_us())
        replies = self._hand.write(version, NODES)
        assert replies.keys() == {*NODES}
        return refused({node: replies[node] for node in CORRECT})

    def fill(self) -> tuple[int, dict[int, int]]:
        """How many blocks all correct nodes take, and what they say to the next one.

        No more than two beyond her share.
        """
        for count in range(WITHIN_SHARE + 2):
            codes = self.add()
            if codes:
                return count, codes
        return count + 1, {}


def taken(attacked: Attacked) -> list[float]:
    """How much of their pools correct nodes have used."""
    deployment = attacked.deployment
    return [metric(deployment, "bftfs_pool_bytes", node) / POOL_BYTES for node in CORRECT]


def shown(path: Path, moment: str) -> str:
    """The contents of a file as of that time; or why they are not shown."""
    try:
        return bftfs("cat", f"{path}@{moment}")
    except CommandFailed as failure:
        return str(failure)


def about_root(town: Town) -> ClusterDescription:
    """A description that nobody has signed: what a mount of root's has overwritten is let go."""
    described = town.described.description
    now_s = clock.now_us() // SECOND_US + 1
    decision = LetGo(now_s, now_s, CLAIMED - 1, described.clients[0].client)
    return replace(described, serial=CLAIMED - 1, let_go=(*described.let_go, decision))


def test_a_stolen_key_gets_a_share_and_its_work_goes_when_that_is_signed(
    town: Town, attacked: Attacked
) -> None:
    owner, name = attacked.owner, attacked.new_name("diary")
    diary, other = owner / name, attacked.other / name
    write(diary, 0o666, MINE)
    first = now()
    diary.write_text(MINE * 2)
    identifier, found = attacked.attributes(name)
    assert found.layout is not None
    key = town.another(attacked.new_name("mallory"))
    attacked.reload()
    since = now()

    # She gets her share, and nobody else is refused.
    with Loot(attacked, key) as loot, attacked.hand(key) as mallory:
        planted = mallory.version(found.layout.block(identifier, 0), EVIL, clock.now_us())
        assert accepted(mallory.write(planted, PLANTED)) == list(PLANTED)
        vouchers = mallory.vouchers(planted)
        assert loot.fill() == (WITHIN_SHARE, dict.fromkeys(CORRECT, errno.EDQUOT))
        assert min(taken(attacked)) > SHARE / 100 - 0.1
        (owner / attacked.new_name("others")).write_bytes(os.urandom(MIB))

        # She is revoked; the audit tells what she has left, whole or not, and an undo ends it.
        town.revoke(key)
        assert not {*accepted(mallory.write(planted, CORRECT))} & {*CORRECT}
    words = ("--client", key, "--since", since)
    done = {
        (Path(row["path"]).name, row["operation"])
        for row in json.loads(bftfs("audit", owner, *words, "--json"))["changes"]
    }
    assert {name for name, _ in done} == {diary.name, loot.name}
    bftfs("undo", owner, *words)
    assert diary.read_text() == other.read_text() == MINE * 2
    assert not (attacked.other / loot.name).exists()

    # What nobody has signed lets nothing go, whoever brings it.
    forged = town.forge(about_root(town))
    with attacked.hand("reader") as reader:
        said = reader.ask_all(Announcement(forged.encoded, forged.signature))
        assert {said[node].code for node in CORRECT} == {errno.EACCES}
    town.times.pass_by(STEP_US)
    assert min(taken(attacked)) > SHARE / 100 - 0.1

    # What the administrator has signed goes, and everybody is told.
    bftfs("cluster", "let-go", "--data", town.data, "--client", key, "--yes")
    town.times.pass_by(STEP_US)
    # A node that has not heard of the undo keeps it until it heals.
    await_that(lambda: sorted(taken(attacked))[-2] < SHARE / 200)
    report = json.loads(bftfs("status", "--data", town.data, "--json", allowed=(0, 1)))
    assert [f"what client {key} made" in sentence for sentence in report["let_go"]] == [True]
    with attacked.hand("reader") as reader:
        reader.finish(planted, vouchers)
    assert diary.read_text() == other.read_text() == MINE * 2
    assert shown(diary, first) == MINE
    town.be_silent()


# --- places at a node -----------------------------------------------------------------------------


@contextmanager
def crowd(attacked: Attacked) -> Iterator[None]:
    """Strangers without keys have more connections to each node than it has places for them."""
    with ExitStack() as stack:
        for node in NODES:
            for _ in range(CROWD):
                stranger = stack.enter_context(socket.socket(socket.AF_UNIX))
                stranger.connect(str(attacked.deployment.node(node).socket))
        yield


def test_strangers_keep_nobody_out(attacked: Attacked) -> None:
    name = attacked.new_name("beside")
    with crowd(attacked):
        assert served(attacked, "reader") == {*CORRECT}
    with (
        crowd(attacked),
        attacked.cluster.mount(attacked.cluster.data.parent / "late", "client=client0") as late,
    ):
        (late / name).write_text(MINE)
    assert (attacked.other / name).read_text() == MINE


TOO_MANY = "too many of your requests wait for peers"
TOO_LATE = "peers did not supply what the node lacks"


def reason(delivery: Any) -> str:
    """Why a request was refused; empty if it was not."""
    reply = None if delivery is None else delivery.message
    return reply.reason if isinstance(reply, Refused) else ""


async def provoke(update: Update) -> Conversation[str]:
    """Have requests wait at node 5 for its peers; what it says to the first one that may not."""
    for _ in range(WAITING):
        await Send(NodeId(BEHIND), update)
    return reason(await Receive(5 * SECOND_US))


async def wait(update: Update, go_on: Callable[[], None]) -> Conversation[str]:
    """Why node 5 refuses a request that waits for its peers. These go on when it has come."""
    await Send(NodeId(BEHIND), update)
    said = reason(await Receive(SECOND_US // 4))
    go_on()
    while not said:
        delivery = await Receive(5 * SECOND_US)
        if isinstance(delivery.message, UpdateReply):
            return ""
        said = reason(delivery)
        if said == TOO_LATE:
            await Send(NodeId(BEHIND), update)
            said = ""
    return said


def unknown_file(attacked: Attacked, hand: ProcessHand) -> ObjectId:
    """A file that anybody may write, and that node 5 has not heard of.

    If the mount was impatient, and has told it, it is another one.
    """
    for _ in range(ATTEMPTS):
        name = attacked.new_name("unknown")
        with stopped(attacked, BEHIND):
            write(attacked.owner / name, 0o666, MINE)
        identifier, _ = attacked.attributes(name)
        known = histories(hand, identifier)
        if parse_history(known[NodeId(BEHIND)].history).latest == ZERO:
            return identifier
    raise AssertionError(f"node {BEHIND} has always heard of the file")


def waited(attacked: Attacked) -> tuple[set[str], str]:
    """What node 5 says to four clients, who have as many requests wait as they can; and to a fifth.

    The requests are updates of files that it has not heard of. What it needs of its peers is late.
    """
    longer = Truncation(100, 1, 0)
    with ExitStack() as stack:
        hands = [stack.enter_context(attacked.hand(key)) for key in (*KEYS, "stranger")]
        updates = [
            as_sent(
                hand.prepared(unknown_file(attacked, hand), registry.TRUNCATE, longer, STRANGER),
                BEHIND,
                len(NODES),
            )
            for hand in hands
        ]
        with ExitStack() as peers:
            for node in NODES[:BEHIND]:
                peers.enter_context(stopped(attacked, node))
            said = {
                hand.perform(provoke(update))
                for hand, update in zip(hands[:-1], updates[:-1], strict=True)
            }
            return said, hands[-1].perform(wait(updates[-1], peers.close))


def test_who_makes_many_requests_wait_leaves_others_their_share(attacked: Attacked) -> None:
    assert waited(attacked) == ({TOO_MANY}, "")


# --- the same without the rules -------------------------------------------------------------------


@pytest.mark.parametrize("name", CLAIMS)
def test_must_fail_where_every_claim_is_believed(attacked: Attacked, name: str) -> None:
    attacked.run(CREDULOUS, FORGING)
    found = claimed(attacked, name)
    refusing = {node for refused in found.refusals for node in refused}
    assert len(refusing) <= 1, "but one that has not heard of the group yet"
    assert Status.SUCCESS in found.statuses
    assert found.size == 100


def test_must_fail_where_every_name_is_possible(attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    thief = Thief(attacked, "stranger")
    with thief.network:
        assert {thief.make(new_inode(), name) for name in IMPOSSIBLE if b"/" in name} == {0}


def test_must_fail_where_ids_are_used_again(attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    assert brought_back(attacked) == 0


def test_must_fail_where_nodes_finish_nothing_unasked(town: Town, attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    assert finished_late(town, "late-beginner", is_settled=False) == (len(MINE), 100)


def test_must_fail_where_strangers_come_first(attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    with crowd(attacked):
        assert not served(attacked, "reader")


def test_must_fail_where_requests_wait_as_they_come(attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    assert waited(attacked) == ({TOO_MANY}, TOO_MANY)


def test_must_fail_where_nobody_has_a_share(attacked: Attacked) -> None:
    attacked.run(CREDULOUS, FORGING)
    with Loot(attacked, "stranger") as loot:
        assert loot.fill() == (WITHIN_SHARE + 2, {})


def test_must_fail_where_every_description_is_believed(town: Town, attacked: Attacked) -> None:
    """An old one, and one that nobody has signed."""
    attacked.run(CREDULOUS, FORGING)
    serving, _ = readmitted(town)
    assert serving == {*CORRECT}
    diary = attacked.owner / attacked.new_name("diary")
    write(diary, 0o600, MINE)
    first = now()
    diary.write_text(MINE * 2)
    town.forge(about_root(town))
    town.times.pass_by(STEP_US)
    await_that(lambda: shown(diary, first) != MINE)
