"""More nodes than may fail lose their last second: what some still know must not lock the rest.

Of an object's latest version more than t nodes know, and fewer than a repairable set. They refuse
what leaves it behind; the others are too few to go on without them, and cannot repair it either.
"""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest

from bftfs import limits
from bftfs.asking.quorum import NOBODY
from bftfs.asking.refusal import Refused
from bftfs.errors import FileSystemError
from bftfs.filesystem.directory import Listing
from bftfs.identifiers import NodeId, ObjectId, ObjectKind, object_id
from bftfs.query_update import between_nodes
from bftfs.query_update.counter import Fetch, Increment
from bftfs.query_update.history import ZERO, Candidate, LogicalTimestamp, history_of
from bftfs.query_update.messages import (
    DeduceReply,
    HistoryReply,
    SyncRequest,
    UpdateReply,
    Verdict,
)
from bftfs.query_update.replica import Replica
from bftfs.server import object_healing
from bftfs.server.object_healing import ObjectHealer
from bftfs.server.recovery import Recovery, Stage
from bftfs.simulation.network import Kind
from bftfs.simulation.workloads.ledger import Transfer
from bftfs.simulation.world import SECOND_US
from tests.seams.test_lost_disks import ONE, OTHER, balances, deposit
from tests.seams.world import ROOT, User, World

COUNTER = object_id(ObjectKind.COUNTER, placement=0, unique=bytes(14))
WITHIN_US = 15 * SECOND_US
HEALED_US = 605 * SECOND_US  # a pass

# Who goes back. Node 5 is outside of the preferred quorum, and knows neither of the last updates.
TWO_KNOW = [(0, 2, 3, 5), (2, 3, 4, 5), (0, 1, 4, 5), (0, 2, 3)]
ONE_KNOWS = [(0, 1, 2, 4, 5), (0, 2, 3, 4, 5), (0, 1, 3, 4)]
ENOUGH_KNOW = [(0,), (3,), (5,), (0, 1), (2, 4), (1, 3, 5)]
NOBODY_KNOWS = [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4, 5)]


class Counted:
    """A counter that all nodes know at 1; two updates later, some nodes lose these."""

    def __init__(self, back: tuple[int, ...], *, t: int = 1, says_so: bool = True) -> None:
        self.world = World(t)
        self._user = self.world.user("user")
        self.increment(self._user)
        self.world.run_for(605 * SECOND_US)
        copies = {node: self.world.copy_of(node) for node in back}
        self.increment(self._user)
        self.increment(self._user)
        self.world.lose_power(copies, says_so=says_so)

    def increment(self, user: User) -> int:
        update = user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)
        value: int = user.run(update, within_us=WITHIN_US).answer.value
        return value

    def fetch(self, user: User) -> int:
        query = user.objects.query((COUNTER,), "counter.fetch", Fetch(), user.who)
        value: int = user.run(query, within_us=WITHIN_US).answer.value
        return value


def check(back: tuple[int, ...], *, says_so: bool = True, gone: int | None = None) -> int:
    """What is read then; from there on it goes on, for everybody alike, with a node down, too.

    A node may be `gone`: its machine does not come back before all is over.
    """
    counted = Counted(back, says_so=says_so)
    world = counted.world
    if gone is not None:
        world.nodes[gone].crash(down_us=None)
    if not says_so:
        world.run_for(HEALED_US)
    one, other = world.user("one"), world.user("other")
    value = counted.fetch(one)
    assert counted.fetch(other) == value
    assert counted.increment(other) == value + 1
    world.run_for(HEALED_US)
    assert counted.increment(one) == value + 2
    if gone is not None:
        world.nodes[gone].start()
        world.run_for(HEALED_US)
    world.nodes[0].crash(down_us=None)
    assert counted.fetch(world.user("later")) == value + 2
    return value


@pytest.mark.parametrize("back", TWO_KNOW)
def test_what_two_know_to_be_established_is_not_lost(back: tuple[int, ...]) -> None:
    """The last of the updates, of which nobody knows that, is lost with the others' memory."""
    assert check(back) == 2


@pytest.mark.parametrize("back", ONE_KNOWS)
def test_what_one_knows_gives_way(back: tuple[int, ...]) -> None:
    """While he dissents, he is a fault, and one more is one too many."""
    assert check(back) == 1


@pytest.mark.parametrize("back", ENOUGH_KNOW)
def test_what_enough_know_is_not_lost(back: tuple[int, ...]) -> None:
    assert check(back) == 3


@pytest.mark.parametrize("back", NOBODY_KNOWS)
def test_what_nobody_knows_never_was(back: tuple[int, ...]) -> None:
    assert check(back) == 1


@pytest.mark.parametrize("back", [*TWO_KNOW, *ONE_KNOWS, *NOBODY_KNOWS])
@pytest.mark.parametrize("gone", [1, 3])
def test_a_machine_that_does_not_come_back_holds_nobody_up(
    back: tuple[int, ...], gone: int
) -> None:
    assert 1 <= check(back, gone=gone) <= 3


@pytest.mark.parametrize("back", [*TWO_KNOW, *ONE_KNOWS, *NOBODY_KNOWS])
def test_nodes_that_know_nothing_of_their_loss_notice_it(back: tuple[int, ...]) -> None:
    """Healing compares: it believes b + 1, and they find out whom the others have left behind."""
    assert 1 <= check(back, says_so=False) <= 3


@pytest.mark.parametrize("back", [(2, 3, 4, 5)])
def test_the_root_directory_is_not_stuck(back: tuple[int, ...]) -> None:
    """Files are made in the last second; the volume can be mounted all the same."""
    world = World()
    root = world.user("root")
    root.format()
    kept = root.make("kept", "what was there before")
    world.run_for(605 * SECOND_US)
    copies = {node: world.copy_of(node) for node in back}
    root.make("one", "lost, perhaps")
    root.make("other", "lost, perhaps")
    world.lose_power(copies)
    other = world.user("other mount")
    ended = world.start(other.host, other.files.make_directory(ROOT, b"new", 0o700, other.who))
    world.run_for(WITHIN_US)
    assert ended
    assert not isinstance(ended[0], BaseException), ended[0]
    assert other.read(kept).rstrip("\0") == "what was there before"


@pytest.mark.parametrize("keeps", [0, 4])
@pytest.mark.parametrize("says_so", [False, True])
def test_an_object_that_all_others_have_forgotten_whole_gives_way(
    keeps: int, says_so: bool
) -> None:
    """One node knows that it is established; nobody updates it any more, and another node fails."""
    world = World()
    user = world.user("user")
    copies = {node: world.copy_of(node) for node in range(6) if node != keeps}
    for _ in range(2):
        update = user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)
        user.run(update, within_us=WITHIN_US)
    world.lose_power(copies, says_so=says_so)
    world.run_for(2 * HEALED_US)
    world.nodes[(keeps + 1) % 5].crash(down_us=None)
    other = world.user("other")
    query = other.objects.query((COUNTER,), "counter.fetch", Fetch(), other.who)
    assert other.run(query, within_us=WITHIN_US).answer.value == 0


def test_must_fail_nodes_that_hear_only_who_calls_it_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "is_left_behind", lambda *_: False)
    with pytest.raises(AssertionError):
        test_an_object_that_all_others_have_forgotten_whole_gives_way(4, says_so=False)


def left_of_a_transfer() -> tuple[int, int]:
    """One node knows that a transfer is established, by both accounts; another one has it.

    Both accounts had 100, and 1 was deposited on each of them since. One machine does not come
    back, so that all others are needed.
    """
    world = World()
    user = world.user("user")
    for account in (ONE, OTHER):
        user.run(deposit(user, account, 100))
    world.run_for(HEALED_US)
    before = {node: world.copy_of(node) for node in range(2, 6)}
    transfer = Transfer(b"move", 50)
    user.run(user.objects.update((ONE, OTHER), "ledger.transfer2", transfer, user.who))
    copies = {**before, 1: world.copy_of(1)}
    for account in (ONE, OTHER):
        user.run(deposit(user, account, 1))
    world.lose_power(copies)
    world.nodes[5].crash(down_us=None)
    world.run_for(HEALED_US)
    other = world.user("other")
    other.run(deposit(other, OTHER, 1), within_us=WITHIN_US)
    one, another = balances(other, ONE, OTHER)
    return one, another


def test_what_gives_way_gives_way_at_all_of_its_objects() -> None:
    """Else the node believes itself what it has given up a moment ago, time and again."""
    assert left_of_a_transfer() == (100, 101)


def test_must_fail_nodes_that_give_way_at_one_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "is_known_at", lambda *_: False)
    with pytest.raises(AssertionError):
        left_of_a_transfer()


def counted_through_two_failures() -> list[int]:
    """What a mount is told that works before, between and after two failures of all machines.

    Half a second lies between them: nodes lose also what they have stored since the first one.
    """
    world = World()
    user = world.user("user")

    def increment() -> int:
        update = user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)
        value: int = user.run(update, within_us=WITHIN_US).answer.value
        return value

    told = [increment()]
    world.run_for(HEALED_US)
    copies = {node: world.copy_of(node) for node in range(world.sizes.n)}
    for _ in range(2):
        world.lose_power(copies)
        world.run_for(SECOND_US // 2)
        told += [increment(), increment()]
    return told


def test_a_mount_goes_on_after_two_failures_in_a_row() -> None:
    """What it remembers of the time between them is of lives that nobody begins again."""
    assert counted_through_two_failures() == [1, 2, 3, 2, 3]


def test_must_fail_nodes_that_begin_a_life_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recovery, "choose", lambda *_: None)
    with pytest.raises(AssertionError):
        counted_through_two_failures()


@pytest.mark.parametrize("updates", [1, 2])
def test_where_nobody_lies_one_that_others_have_left_behind_gives_way(updates: int) -> None:
    """Its machine comes back last: its word alone would have been believed, had others heard it."""
    world = World(1, 0)
    user = world.user("user")

    def increment() -> int:
        update = user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)
        value: int = user.run(update, within_us=WITHIN_US).answer.value
        return value

    increment()
    world.run_for(HEALED_US)
    copies = {node: world.copy_of(node) for node in (1, 2, 3)}
    increment()
    increment()
    world.lose_power(copies)
    world.nodes[0].crash(down_us=None)
    for _ in range(updates):
        value = increment()
    world.nodes[0].start()
    world.run_for(HEALED_US)
    assert not world.deployment.recoveries[NodeId(0)].rebuilding
    world.nodes[1].crash(down_us=None)
    assert increment() == value + 1


def test_must_fail_where_one_word_is_held_against_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gives_way = ObjectHealer._gives_way

    async def stubborn(healer: ObjectHealer, *given: Any) -> bool:
        alone = NOBODY.plus(healer._node)
        return not healer._quorums.includes_benign(alone) and await gives_way(healer, *given)

    monkeypatch.setattr(ObjectHealer, "_gives_way", stubborn)
    with pytest.raises(AssertionError):
        test_where_nobody_lies_one_that_others_have_left_behind_gives_way(1)


def left_of(lost: tuple[int, ...]) -> int:
    """What is left of six updates, of which each node has lost so many."""
    world = World()
    user = world.user("user")
    copies = {}
    for number in range(6):
        update = user.objects.update((COUNTER,), "counter.increment", Increment(1), user.who)
        user.run(update, within_us=WITHIN_US)
        world.run_for(HEALED_US)
        copies |= {node: world.copy_of(node) for node in range(6) if lost[node] == 5 - number}
    world.lose_power(copies)
    other = world.user("other")
    query = other.objects.query((COUNTER,), "counter.fetch", Fetch(), other.who)
    value: int = other.run(query, within_us=WITHIN_US).answer.value
    return value


DIFFERENT = [(1, 4, 0, 2, 5, 3), (5, 0, 3, 1, 2, 4)]


@pytest.mark.parametrize("lost", DIFFERENT)
def test_who_gives_way_keeps_what_others_know(lost: tuple[int, ...]) -> None:
    """Two know that four have succeeded; one of them gives up the fifth."""
    assert left_of(lost) == 4


def test_must_fail_nodes_that_give_way_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "in_common", lambda *_: ZERO)
    assert any(left_of(lost) < 4 for lost in DIFFERENT)


class Made:
    """A directory was made a moment ago, then files beside it. Two nodes do not lose that.

    `whole` of these have the directory. The others of the two know of its name only, since later
    updates have brought the one forward where the name is.
    """

    def __init__(self, whole: int) -> None:
        self.world = world = World()
        root = world.user("root")
        root.format()
        world.run_for(605 * SECOND_US)
        copies = {node: world.copy_of(node) for node in range(6)}
        made = root.run(root.files.make_directory(ROOT, b"directory", 0o700, root.who))
        self.directory = made.identifier
        has = world.knowing(self.directory)
        away = world.nodes[has[0]]
        away.crash(down_us=None)  # so that the one without the directory is asked in its place
        root.make("one", "")
        root.make("other", "")
        away.start()
        knowing = [*has[-whole - 1 : -1], *(node for node in range(6) if node not in has)][:2]
        world.lose_power({node: copies[node] for node in copies if node not in knowing})

    def there(self, user: User) -> dict[bytes, bool]:
        """The names in the root directory, and whether there is an object for each."""
        there = {}
        for name, child in names_in(user, ROOT).items():
            try:
                there[name] = bool(user.attributes(child))
            except FileSystemError as error:
                if error.code != errno.ESTALE:
                    raise
                there[name] = False
        return there


def names_in(user: User, directory: ObjectId) -> dict[bytes, ObjectId]:
    """The names in a directory, and the objects that they stand for."""
    query = user.objects.query((directory,), "directory.read", Listing(0, 65_536), user.who)
    return {entry.name: entry.identifier for entry in user.run(query).answer.entries}


def test_what_is_named_is_there_if_two_know_it() -> None:
    """Two know that the directory's update is established, and have what it made."""
    made = Made(whole=2)
    there = made.there(made.world.user("other mount"))
    assert b"directory" in there
    assert all(there.values()), there


def test_a_name_of_which_nothing_is_left_can_be_removed() -> None:
    """What one node alone has of a directory is not believed; the others have its name."""
    made = Made(whole=1)
    user = made.world.user("other mount")
    assert made.there(user)[b"directory"] is False
    with pytest.raises(FileSystemError) as stale:
        user.run(user.files.remove_directory(ROOT, b"directory", user.who), within_us=WITHIN_US)
    assert stale.value.code == errno.ESTALE
    before = user.attributes(ROOT)
    user.run(user.files.mend(ROOT, b"directory", user.who), within_us=WITHIN_US)
    assert b"directory" not in names_in(made.world.user("another"), ROOT)
    after = user.attributes(ROOT)
    assert (after.links, after.entries) == (before.links - 1, before.entries - 1)
    user.run(user.files.make_directory(ROOT, b"directory", 0o700, user.who), within_us=WITHIN_US)
    made.world.run_for(HEALED_US)
    assert all(made.there(made.world.user("later")).values())


def test_a_name_of_something_is_not_mended_away() -> None:
    made = Made(whole=2)
    user = made.world.user("other mount")
    for name, code in ((b"directory", errno.EEXIST), (b"nothing", errno.ENOENT)):
        with pytest.raises(FileSystemError) as refusal:
            user.run(user.files.mend(ROOT, name, user.who), within_us=WITHIN_US)
        assert refusal.value.code == code


def test_must_fail_nodes_that_believe_each_object_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = object_healing.bases

    def alone(history_set: Any, *others: Any) -> Any:
        known = found(history_set, *others)
        return type(known)([], []) if history_set.hosted[0].history.initial else known

    monkeypatch.setattr(object_healing, "bases", alone)
    with pytest.raises(AssertionError):
        test_what_is_named_is_there_if_two_know_it()


def test_a_request_costs_one_object_sync() -> None:
    """Nodes that know something later fetch what they cannot use: for each request once."""
    counted = Counted((0, 2, 3, 5))
    world, knowing = counted.world, ("node", 1)
    asked = answered = 0

    def watch(source: Any, target: Any, kind: Kind, message: Any) -> None:
        nonlocal asked, answered
        if source == knowing:
            asked += kind is Kind.REQUEST and isinstance(message, SyncRequest)
            answered += kind is Kind.REPLY and isinstance(message, UpdateReply | Refused)

    world.ways.watch = watch
    user = world.user("other")
    query = user.objects.query((COUNTER,), "counter.fetch", Fetch(), user.who)
    world.start(user.host, query)
    world.run_for(5 * SECOND_US)
    most = (world.sizes.query_update.b + 2) * answered
    assert asked <= most, f"{asked} requests for object sync, and {answered} requests answered"


# --- within the thresholds ------------------------------------------------------------------------


def lie(world: World, liar: int, *, verdict: Verdict) -> None:
    """It tells nodes that it has forgotten everything, and of every version the same fate."""
    send = world.ways.send

    def changed(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", liar) and target[0] == "node":
            if isinstance(message, HistoryReply):
                message = msgspec.structs.replace(message, history=b"", remembers=False)
            elif isinstance(message, DeduceReply):
                message = DeduceReply(verdict, message.voucher)
        send(source, target, kind, number, message, body)

    world.ways.send = changed  # type: ignore[method-assign]


@pytest.mark.parametrize("verdict", Verdict)
def test_b_liars_make_nobody_give_way(verdict: Verdict) -> None:
    """One machine fails, and one of eight others lies: that is within t = 2 and b = 1."""
    counted = Counted((), t=2, says_so=False)
    world = counted.world
    recoveries = world.deployment.recoveries
    lie(world, 8, verdict=verdict)
    counted.increment(world.user("one"))
    for node in (0, 1):
        recoveries[NodeId(node)] = Recovery(Stage.LOST)
        world.put_back({node: world.copy_of(node)}, elsewhere=False)
        assert counted.fetch(world.user(f"reader {node}")) == 4
        world.run_for(HEALED_US)
        recovery = recoveries[NodeId(node)]
        assert (recovery.rebuilding, recovery.makes_do, recovery.gave_way) == (False, False, 0)


def forge(world: World, liar: int, knowing: int) -> None:
    """It reports what another node knows, as if that were conditioned on something else."""
    send = world.ways.send

    def changed(
        source: Any, target: Any, kind: Kind, number: int, message: Any, body: Any = b""
    ) -> None:
        if source == ("node", liar) and target[0] == "node" and isinstance(message, HistoryReply):
            history = Replica(world.nodes[knowing].disk, COUNTER).history
            forged = [
                Candidate(each.timestamp, after(each.conditioned_on), each.objects, each.copy)
                for each in history.candidates
            ]
            told = history_of(tuple(forged), initial=history.initial)
            message = msgspec.structs.replace(message, history=told)
        send(source, target, kind, number, message, body)

    world.ways.send = changed  # type: ignore[method-assign]


def after(timestamp: LogicalTimestamp) -> LogicalTimestamp:
    """The next one that is possible: no operation has it."""
    following = int.from_bytes(timestamp, "big") + 1
    return LogicalTimestamp(following.to_bytes(len(timestamp), "big"))


def signed_of_a_liars(back: tuple[int, ...]) -> int:
    """How many candidates correct nodes sign that are conditioned on what no version is.

    Node 1 has kept all; node 0 lies.
    """
    counted = Counted(back)
    world = counted.world
    forge(world, 0, 1)
    world.run_for(2 * HEALED_US)
    assert counted.fetch(world.user("one")) == 2
    signed = 0
    for node in world.nodes[1:]:
        replica = Replica(node.disk, COUNTER)
        for candidate in replica.history.candidates:
            version = replica.version(candidate.timestamp)
            if not candidate.barrier and (version is None or not version.gap):
                signed += version is None or candidate.conditioned_on != version.parent
    return signed


@pytest.mark.parametrize("back", TWO_KNOW)
def test_what_a_liar_makes_up_of_a_version_is_not_signed(back: tuple[int, ...]) -> None:
    assert not signed_of_a_liars(back)


def test_must_fail_nodes_that_believe_all_that_comes_with_a_timestamp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_healing, "_is_made_by", lambda *_: True)
    assert any(map(signed_of_a_liars, TWO_KNOW))


def read_after_whole_states(monkeypatch: pytest.MonkeyPatch) -> int:
    """What is read where object sync brings no chain, and two nodes know one version.

    Node 0 missed the last update: node 1 knows a later version to be established, and so does not
    report any more the candidate that both know.
    """
    monkeypatch.setattr(limits, "SYNC_LINKS", 1)
    counted = Counted(())
    world = counted.world
    user = world.user("another")
    copies = {node: world.copy_of(node) for node in (2, 3, 4, 5)}
    counted.increment(user)
    counted.increment(user)
    counted.increment(user)
    copies[0] = world.copy_of(0)
    counted.increment(user)
    world.lose_power(copies, says_so=False)
    world.run_for(2 * HEALED_US)
    return counted.fetch(world.user("one"))


def test_what_two_know_is_not_lost_where_object_sync_brings_whole_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert read_after_whole_states(monkeypatch) == 5


def test_must_fail_nodes_that_do_not_ask_how_a_version_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nobody_asks(*_: object, **__: object) -> bool:
        return False

    monkeypatch.setattr(between_nodes, "is_made_by", nobody_asks)
    assert read_after_whole_states(monkeypatch) < 5


# --- what the rules are for -----------------------------------------------------------------------


def test_must_fail_nodes_that_wait_for_who_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_healing, "too_many_forgot", lambda *_: False)
    monkeypatch.setattr(Recovery, "is_making_do", False)
    with pytest.raises(AssertionError):
        check(TWO_KNOW[0])


def test_must_fail_nodes_that_believe_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: Any) -> bool:
        return False

    monkeypatch.setattr(ObjectHealer, "_believe", nothing)
    with pytest.raises(AssertionError):
        test_what_two_know_to_be_established_is_not_lost(TWO_KNOW[0])


def test_must_fail_nodes_that_never_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> bool:
        return False

    monkeypatch.setattr(ObjectHealer, "_gives_way", never)
    with pytest.raises(AssertionError):
        test_what_one_knows_gives_way(ONE_KNOWS[0])


def test_must_fail_nodes_that_make_do_on_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        object_healing, "too_many_forgot", lambda _quorums, _me, forgetful: len(forgetful) > 0
    )
    with pytest.raises(AssertionError):
        test_b_liars_make_nobody_give_way(Verdict.DEAD)
