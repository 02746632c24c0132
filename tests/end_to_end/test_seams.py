"""What one protocol knows, used against the other: lying clients and nodes against real mounts.

Each attack is one of `tests/seams`, where it is tried in every variety. Here the nodes, the liar
and the mounts are processes. Six nodes, one of which lies; root's two mounts; a stranger with a
write grant and a reader, who both know the liar's key. In the end the other nodes are replaced by
ones without the rules (`tests.integration.careless_node`), and the same attacks succeed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from bftfs.conversation import Pause
from bftfs.filesystem.attributes import NO_CHANGES, Layout
from bftfs.filesystem.block_names import covered
from bftfs.filesystem.inode import Writing
from bftfs.filesystem.registry import WRITE
from bftfs.identifiers import NodeId, ObjectId
from bftfs.limits import BARRIER_STEPS, REPAIRS_PER_SECOND, SECOND_US
from bftfs.query_update.history import Known, assemble, client_of, parse_history
from bftfs.query_update.messages import FetchReply, FetchRequest, InlineBarrier, Status, UpdateReply
from bftfs.read_write.messages import ReadReply, ReadRequest
from bftfs.runtime import clock
from bftfs.simulation.byzantine.object_repairs import NOBODY, forged_barrier
from bftfs.simulation.byzantine.positions import NodePosition
from bftfs.wire.codec import Voucher
from tests.end_to_end.attacked import BEHIND, LIAR, NODES, Attacked, stopped, write
from tests.end_to_end.cluster import Cluster, bftfs
from tests.end_to_end.test_history import now
from tests.end_to_end.watchdog import Watchdog
from tests.integration.deployment import await_that
from tests.integration.process_hand import ProcessHand
from tests.integration.test_node import metric
from tests.seams.test_barriers import AHEAD_US, barrier, histories
from tests.seams.world import STRANGER, Version, accepted

pytestmark = [pytest.mark.timeout(120, func_only=True), pytest.mark.slow]

MINE, EVIL = "what root wrote", "EVIL!!"
HONEST = ("nodes",)
CARELESS = ("tests.integration.careless_node",)
ACCOMPLICE = ("tests.lying_node", "accomplice")
FORGER = ("tests.lying_node", "forged-barrier")
FALSE_VOUCHERS = "tests.integration.false_vouchers_node"
PLANTED = (0, 1)  # who host a version that nobody sees
ATTEMPTS = 5  # at a file that node 5 has not heard of
UPDATES = 20  # of a correct client, which are over…
BARRIERS = 300  # …before an attacker has made so many barriers
SHOWN = 'bftfs_requests_total{message="InlineBarrier"}'


@pytest.fixture(scope="module")
def attacked(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Attacked]:
    attacked = Attacked(Cluster(playground / "seams"))
    try:
        attacked.run(HONEST, ACCOMPLICE)
        with attacked.mounted():
            yield attacked
    finally:
        attacked.deployment.close()


# --- who may write --------------------------------------------------------------------------------


def overwritten(attacked: Attacked, made: Callable[[Attacked], str]) -> tuple[str, set[int]]:
    """A file of root's, and the correct nodes that take what the stranger writes to it.

    He writes to all nodes; asks all to vouch that they host it; and shows the vouchers to the rest
    as a reader does that repairs. The version is dated when root wrote last, so that it is covered.
    If the mount was impatient, and has told node 5 of the file, too, he tries another one.
    """
    for _ in range(ATTEMPTS):
        name = made(attacked)
        identifier, found = attacked.attributes(name)
        assert found.layout is not None
        with attacked.hand("stranger") as stranger:
            version = stranger.version(found.layout.block(identifier, 0), EVIL, found.contents)
            took = accepted(stranger.write(version, attacked.deployment.nodes))
            assert set(took) <= {LIAR, BEHIND}, "nodes that know the file refuse it"
            if BEHIND in took:
                vouchers = stranger.vouchers(version)
                return name, {*accepted(stranger.finish(version, vouchers))} - {LIAR}
    raise AssertionError(f"node {BEHIND} has always heard of the file")


def new_file(attacked: Attacked) -> str:
    """A file that node 5 has not heard of."""
    name = attacked.new_name("new")
    with stopped(attacked, BEHIND):
        write(attacked.owner / name, 0o600, MINE)
    return name


def closed_file(attacked: Attacked) -> str:
    """A file that node 5 believes to be open to all."""
    name = attacked.new_name("closed")
    path = attacked.owner / name
    write(path, 0o666, MINE)
    # When it starts again it compares what it stores, and learns of the file.
    attacked.deployment.kill(BEHIND)
    attacked.programs.pop(BEHIND)
    attacked.run(attacked.programs[0], ACCOMPLICE)
    with stopped(attacked, BEHIND):
        path.chmod(0o600)
    return name


def check_that_root_reads_its_own(attacked: Attacked, made: Callable[[Attacked], str]) -> None:
    attacked.run(HONEST, ACCOMPLICE)
    name, hosts = overwritten(attacked, made)
    assert hosts <= {BEHIND}
    for mount in (attacked.owner, attacked.other):
        assert (mount / name).read_text() == MINE
        assert (mount / name).stat().st_mode & 0o777 == 0o600


def test_a_stranger_does_not_overwrite_a_new_file(guarded: None, attacked: Attacked) -> None:
    check_that_root_reads_its_own(attacked, new_file)


def test_a_stranger_does_not_overwrite_a_file_that_was_closed(
    guarded: None, attacked: Attacked
) -> None:
    check_that_root_reads_its_own(attacked, closed_file)


# --- who may read ---------------------------------------------------------------------------------


def told(attacked: Attacked, made: Callable[[Attacked], str]) -> tuple[set[int], list[bytes]]:
    """The nodes that show the stranger a block of a file of root's, and what they tell besides.

    That are the requests that have made the names in a directory of root's.
    """
    identifier, found = attacked.attributes(made(attacked))
    assert found.layout is not None
    private = attacked.new_name("private")
    (attacked.owner / private).mkdir(mode=0o700)
    directory, _ = attacked.attributes(private)
    (attacked.owner / private / MINE).touch()
    with attacked.hand("stranger") as stranger:
        block = found.layout.block(identifier, 0)
        replies = stranger.ask_all(ReadRequest(block, None, True, 8, *STRANGER))
        blocks = {node for node, each in replies.items() if isinstance(each, ReadReply)}
        latest = {
            parse_history(each.history).latest for each in histories(stranger, directory).values()
        }
        requests = [
            reply.conditioned
            for timestamp in latest
            for reply in stranger.ask_all(FetchRequest(timestamp, *STRANGER)).values()
            if isinstance(reply, FetchReply)
        ]
    return blocks, requests


@pytest.mark.parametrize("made", [new_file, closed_file])
def test_a_stranger_is_shown_no_file_of_roots(
    guarded: None, attacked: Attacked, made: Callable[[Attacked], str]
) -> None:
    attacked.run(HONEST, ACCOMPLICE)
    blocks, requests = told(attacked, made)
    assert blocks <= {LIAR, BEHIND}
    assert not any(MINE.encode() in each for each in requests)


# --- what was planted while it was permitted ------------------------------------------------------


def planted(attacked: Attacked) -> str:
    """A file that root has closed, and a version that a reader has finished since.

    The stranger put it at few nodes while he might, and collected their vouchers and the liar's.
    """
    name = attacked.new_name("shared")
    path = attacked.owner / name
    write(path, 0o666, MINE)
    identifier, found = attacked.attributes(name)
    assert found.layout is not None
    with attacked.hand("stranger") as stranger:
        version = stranger.version(found.layout.block(identifier, 0), EVIL, found.contents)
        assert accepted(stranger.write(version, PLANTED)) == list(PLANTED)
        vouchers = stranger.vouchers(version)
    path.chmod(0o400)
    with attacked.hand("reader") as reader:
        hosts = accepted(reader.finish(version, vouchers))
    assert {*hosts} >= {*attacked.deployment.nodes} - {LIAR}
    return name


def test_what_was_planted_does_not_appear(guarded: None, attacked: Attacked) -> None:
    """Now, and when root writes again."""
    attacked.run(HONEST, ACCOMPLICE)
    name = planted(attacked)
    for mount in (attacked.owner, attacked.other):
        assert (mount / name).read_text() == MINE
    with (attacked.owner / name).open("a") as file:
        file.write(MINE)
    for mount in (attacked.owner, attacked.other):
        assert (mount / name).read_text() == MINE + MINE


# --- what is named --------------------------------------------------------------------------------


def write_and_sync(path: Path, contents: bytes) -> None:
    with path.open("wb") as file:
        file.write(contents)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("liar", ["forging", "withholding"])
def test_a_node_without_valid_vouchers_stops_no_fsync(
    guarded: None, attacked: Attacked, liar: str
) -> None:
    """Files of one block, whose vouchers come with the block, and of three, for which it asks."""
    attacked.run(HONEST, (FALSE_VOUCHERS, liar))
    name = attacked.new_name("synced")
    write_and_sync(attacked.owner / name, b"")
    _, found = attacked.attributes(name)
    assert found.layout is not None
    for attempt in range(3):  # until it is among the first that acknowledge
        for length in (100, 2 * found.layout.block_bytes + 100):
            contents = b"%d" % attempt * length
            write_and_sync(attacked.owner / name, contents)
            assert (attacked.other / name).read_bytes() == contents


class Shared(NamedTuple):
    """A file that all may write, and what the stranger knows of it."""

    path: Path
    identifier: ObjectId
    layout: Layout
    made_us: int  # the time of its contents: ahead of clocks, if that of the root directory is

    def name(
        self, stranger: ProcessHand, number: int, version: Version, claims: tuple[Voucher, ...]
    ) -> set[Status]:
        """He has an update of the inode name a version of his; what correct nodes say to that."""
        names = (covered(number, version.timestamp),)
        writing = Writing(0, self.layout.newest, 0, NO_CHANGES, names)
        correct = [node for node in range(stranger.sizes.n) if node != LIAR]
        return {
            *stranger.update(
                self.identifier, WRITE, writing, STRANGER, claims=claims, asked=correct
            )
        }

    def version(self, stranger: ProcessHand, number: int, contents: str) -> Version:
        block = self.layout.block(self.identifier, number)
        return stranger.version(block, contents, max(clock.now_us(), self.made_us + 1))


def shared(attacked: Attacked) -> Shared:
    name = attacked.new_name("shared")
    write(attacked.owner / name, 0o666, MINE)
    identifier, found = attacked.attributes(name)
    assert found.layout is not None
    return Shared(attacked.owner / name, identifier, found.layout, found.contents)


def named_with_forged_vouchers(attacked: Attacked) -> tuple[Shared, set[Status]]:
    """The stranger names a version that few nodes host, with vouchers of all.

    Those of the others have the liar's keys. What correct nodes say to the update.
    """
    file = shared(attacked)
    with attacked.hand("stranger") as stranger:
        version = file.version(stranger, 0, EVIL)
        assert accepted(stranger.write(version, PLANTED)) == list(PLANTED)
        claims = {each.node: each for each in stranger.claims([version])}
        assert set(claims) == {*PLANTED, LIAR}
        liars = claims[LIAR].authenticator
        forged = [claims.get(node, Voucher(node, liars)) for node in NODES]
        return file, file.name(stranger, 0, version, tuple(forged))


def test_forged_vouchers_name_nothing(guarded: None, attacked: Attacked) -> None:
    attacked.run(HONEST, ACCOMPLICE)
    file, said = named_with_forged_vouchers(attacked)
    assert said == {Status.UNVOUCHED}
    for mount in (attacked.owner, attacked.other):
        assert (mount / file.path.name).read_text() == MINE


def grown(attacked: Attacked) -> tuple[set[Status], list[bytes], bytes]:
    """Root closes a file that a stranger has written behind the end of, undoes, and lets it grow.

    The stranger has named a longer version of its block, and one of the next block. What correct
    nodes said to the latter; what both mounts show in the end; and what they should.
    """
    file = shared(attacked)
    since = now()
    with attacked.hand("stranger") as stranger:
        for number, contents in ((0, MINE + EVIL * 10), (1, EVIL)):
            version = file.version(stranger, number, contents)
            stranger.write(version, attacked.deployment.nodes)
            said = file.name(stranger, number, version, stranger.claims([version]))
    file.path.chmod(0o600)
    words = ["--client", "stranger", "--since", since]
    bftfs("undo", file.path, *words)
    size = 2 * file.layout.block_bytes
    os.truncate(file.path, size)
    seen = [(mount / file.path.name).read_bytes() for mount in (attacked.owner, attacked.other)]
    return said, seen, MINE.encode().ljust(size, b"\0")


def test_what_lies_behind_the_end_does_not_show(guarded: None, attacked: Attacked) -> None:
    attacked.run(HONEST, ACCOMPLICE)
    said, seen, expected = grown(attacked)
    assert said == {Status.REFUSED}
    assert seen == [expected] * 2


# --- barriers -------------------------------------------------------------------------------------


def clocked(place: ObjectId, reader: ProcessHand) -> Iterator[Any]:
    """Barriers that carry a clock, all on one old history of a correct node."""
    known = histories(reader, place)[NodeId(0)]
    while True:
        yield barrier(known, NodeId(0), clock.now_us() + AHEAD_US, name=place)


def forged(place: ObjectId, reader: ProcessHand) -> Iterator[Known]:
    """What the liar says of the directory: each time a later barrier, which nobody made."""
    liar = NodePosition(NodeId(LIAR), {}, reader.keys(LIAR), reader.sizes, Random(1))
    own = histories(reader, place)[liar.node]
    while True:
        yield forged_barrier(liar, place, own, time_us=clock.now_us() + AHEAD_US)


def shown(place: ObjectId, reader: ProcessHand) -> Iterator[Any]:
    """Barriers that the liar has forged, shown to all nodes."""
    for known in forged(place, reader):
        history_set, authenticators, _ = assemble(place, {NodeId(LIAR): known})
        yield InlineBarrier(history_set, authenticators)


def built_on(place: ObjectId, reader: ProcessHand) -> Iterator[Any]:
    """The reader's own barriers, on top of what the liar has forged."""
    for known in forged(place, reader):
        yield barrier(known, NodeId(LIAR), name=place)


Barrage = Callable[[ObjectId, ProcessHand], Iterator[Any]]
BARRAGES = [clocked, shown, built_on]


def make_directories(attacked: Attacked, place: str = ".") -> None:
    """Root makes some directories in a directory, and finds them there."""
    names = [attacked.new_name("directory") for _ in range(UPDATES)]
    for name in names:
        (attacked.owner / place / name).mkdir()
    assert {path.name for path in (attacked.other / place).iterdir()} >= set(names)


def barred(attacked: Attacked, barrage: Barrage) -> tuple[int, bool]:
    """How many barriers of a reader correct nodes take while root makes directories.

    The reader makes as many as a client's allowance permits. And True if root was done before all
    were sent. The directory is a new one: those taken move its time ahead, and others follow from
    that.
    """
    count = 0
    name = attacked.new_name("place")
    (attacked.owner / name).mkdir()
    place, _ = attacked.attributes(name)
    with attacked.hand("reader") as reader, ThreadPoolExecutor(1) as others:
        made = others.submit(make_directories, attacked, name)
        for request in itertools.islice(barrage(place, reader), BARRIERS):
            count += any(
                isinstance(reply, UpdateReply) and reply.status is Status.SUCCESS
                for node, reply in reader.ask_all(request).items()
                if node != LIAR
            )
            reader.perform(pause())
        in_time = made.done()
        made.result()
    return count, in_time


def permitted(barrage: Barrage) -> int:
    """How many barriers careful nodes take.

    On one server's word they take a few, in the beginning: a fast clock could have left that.
    """
    return BARRIER_STEPS if barrage is built_on else 0


async def pause() -> None:
    await Pause(SECOND_US // REPAIRS_PER_SECOND)


@pytest.mark.parametrize("barrage", BARRAGES)
def test_barriers_of_a_reader_do_not_stop_updates(
    guarded: None, attacked: Attacked, barrage: Barrage
) -> None:
    attacked.run(HONEST, ACCOMPLICE)
    taken, in_time = barred(attacked, barrage)
    assert in_time
    assert taken <= permitted(barrage)


# --- the same without the rules -------------------------------------------------------------------


def test_must_fail_careless_nodes_name_what_few_host(guarded: None, attacked: Attacked) -> None:
    attacked.run(CARELESS, ACCOMPLICE)
    file, said = named_with_forged_vouchers(attacked)
    assert said == {Status.SUCCESS}
    with pytest.raises(OSError, match="Input/output error"):
        (attacked.other / file.path.name).read_text()


@pytest.mark.parametrize("made", [new_file, closed_file])
def test_must_fail_careless_nodes_let_the_stranger_in(
    guarded: None, attacked: Attacked, made: Callable[[Attacked], str]
) -> None:
    attacked.run(CARELESS, ACCOMPLICE)
    _, hosts = overwritten(attacked, made)
    assert hosts == {*attacked.deployment.nodes} - {LIAR}


@pytest.mark.parametrize("barrage", BARRAGES)
def test_must_fail_careless_nodes_take_a_readers_barriers(
    guarded: None, attacked: Attacked, barrage: Barrage
) -> None:
    """Whether root finds gaps between them, and is done first, depends on the machine's speed."""
    attacked.run(CARELESS, ACCOMPLICE)
    taken, _ = barred(attacked, barrage)
    assert taken > permitted(barrage)


# --- barriers that a node forges, which leave the root directory ahead of clocks -----------------


def forged_barriers(reader: ProcessHand, root: ObjectId) -> int:
    """How many barriers that nobody made correct nodes have in their histories."""
    return sum(
        client_of(candidate.timestamp) == NOBODY
        for node, known in histories(reader, root).items()
        if node != LIAR
        for candidate in parse_history(known.history).candidates
        if candidate.barrier
    )


def test_barriers_that_a_node_forges_do_not_stop_updates(guarded: None, attacked: Attacked) -> None:
    """It sends them to the others by itself, while root makes directories, and while it rests."""
    attacked.run(HONEST, FORGER)
    root = attacked.deployment.description.root
    with attacked.hand("reader") as reader:
        make_directories(attacked)
        before = metric(attacked.deployment, SHOWN)
        await_that(lambda: metric(attacked.deployment, SHOWN) >= before + UPDATES)
        assert not forged_barriers(reader, root)


def test_must_fail_careless_nodes_take_what_a_node_forges(
    guarded: None, attacked: Attacked
) -> None:
    attacked.run(CARELESS, FORGER)
    with attacked.hand("reader") as reader:
        await_that(lambda: forged_barriers(reader, attacked.deployment.description.root) > 0)


def test_must_fail_careless_nodes_show_roots_files(guarded: None, attacked: Attacked) -> None:
    attacked.run(CARELESS, ACCOMPLICE)
    blocks, requests = told(attacked, closed_file)
    assert len(blocks) > 2
    assert any(MINE.encode() in each for each in requests)


def test_must_fail_careless_nodes_show_what_lies_behind_the_end(
    guarded: None, attacked: Attacked
) -> None:
    """It stands last: with node 3 convicted, mounts need all others from now on.

    It keeps the rule here, and gives another answer than more than b others.
    """
    attacked.run(CARELESS, ACCOMPLICE)
    said, seen, expected = grown(attacked)
    assert said == {Status.SUCCESS}
    assert expected not in seen
    assert all(EVIL.encode() in contents for contents in seen)
