"""What the administrator is told of nodes on other machines, which may be down, old or lying."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bftfs import cluster, description_files
from bftfs.cli import reach, signed_elsewhere
from bftfs.cli.main import program
from bftfs.cli.reach import NodeAccess
from bftfs.cluster import ClientEntry, ClusterDescription
from bftfs.credentials import Grant
from bftfs.crypto.keys import Identity, read_identity, write_identity, write_volume_key
from bftfs.data_directory import DataDirectory
from bftfs.envelope import (
    REQUESTS,
    Announcement,
    ClientUse,
    DescriptionReply,
    DescriptionRequest,
    UpkeepReply,
    UpkeepRequest,
    WorkStatus,
)
from bftfs.errors import PeerFault, UsageError
from bftfs.identifiers import FIRST_EPOCH, ClientId, EpochId
from bftfs.key_epochs import epoch_keys_in
from bftfs.server.step import Role, Sender
from bftfs.storage import MemoryStorage
from bftfs.wire.channel import ServerChannel
from bftfs.wire.codec import encode
from nodes.membership import LiveMembership, MembershipServer, latest_description

IDLE = WorkStatus("scrub", "idle", 1.0, 0.0, 1024, None, None, {"passes": 1})
Answer = Callable[[Any], Any]
VOLUME_KEY = b"v" * 32
LAPTOP = Identity.generate(b"p" * 32)


class Office:
    """The administrator's machine. The nodes' addresses are TCP, and no node's files are here."""

    def __init__(self, path: Path) -> None:
        self.directory = DataDirectory(path)
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
        self.made = cluster.create(
            [f"tcp:127.0.0.1:{each.getsockname()[1]}" for each in self.sockets],
            t=1,
            b=1,
            draw=os.urandom,
        )
        write_identity(self.directory.administrator_key, self.made.administrator)
        write_volume_key(self.directory.volume_key, VOLUME_KEY)
        description_files.store(
            self.directory.description, self.made.description, self.made.administrator
        )

    def bftfs(self, *words: str) -> Result:
        return CliRunner().invoke(
            program, [*words, "--data", str(self.directory.path)], standalone_mode=False
        )

    @contextmanager
    def running(self, number: int, answer: Answer, *, older: bool = False) -> Iterator[None]:
        """A node that answers so; an `older` one does not know the administrator."""

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = self.sockets[number].accept()
                    with connection:
                        self._serve(connection, number, answer, older=older)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            self.sockets[number].shutdown(socket.SHUT_RDWR)
            self.sockets[number].close()
            thread.join()

    def _serve(
        self, connection: socket.socket, number: int, answer: Answer, *, older: bool
    ) -> None:
        description = self.made.description
        channel = ServerChannel[Sender](
            identity=self.made.nodes[number],
            node=description.members[number].node,
            cluster_id=description.cluster_id,
            view=description.view,
            principal=lambda key: None if older else description.principal(key),
            entropy=os.urandom(32),
        )
        while data := connection.recv(1 << 16):
            try:
                frames = channel.receive(data)
            except PeerFault:
                connection.sendall(channel.pending_output())
                return
            connection.sendall(channel.pending_output())
            for frame in frames:
                message = answer(REQUESTS.decode(frame.metadata))
                if message is not None:
                    connection.sendall(b"".join(channel.seal_reply(frame.number, message)))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    yield office
    for each in office.sockets:
        each.close()


def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers: it need not be waited for long."""
    monkeypatch.setattr(reach, "_PATIENCE_US", 200_000)
    monkeypatch.setattr(reach, "_LONGER_US", 200_000)


def idle(_: UpkeepRequest) -> bytes:
    return encode(UpkeepReply(status=IDLE))


def test_a_node_on_another_machine_obeys_the_administrator(office: Office) -> None:
    heard = []

    def answer(message: UpkeepRequest) -> bytes:
        heard.append(message)
        return idle(message)

    with office.running(3, answer):
        result = office.bftfs("scrub", "throttle", "8MiB", "--node", "3")
    assert result.return_value == 0, result.output
    assert heard == [UpkeepRequest("throttle", "scrub", 8 << 20)]
    assert "idle" in result.stdout


def test_the_metrics_of_a_node_on_another_machine(office: Office) -> None:
    with office.running(3, lambda _: encode(UpkeepReply(metrics="bftfs_objects 7.0\n\x1b[31m\n"))):
        result = office.bftfs("metrics", "3")
    assert result.return_value == 0
    assert result.stdout == "bftfs_objects 7.0\n\\x1b[31m\n"


def test_an_older_node_is_told_apart_from_one_that_is_down(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = office.made.description.members[5].address
    office.sockets[5].close()
    with office.running(4, idle, older=True):
        older = office.bftfs("heal", "status", "--node", "4")
        _hurry(monkeypatch)
        down = office.bftfs("heal", "status", "--node", "5")
    assert older.return_value == down.return_value == 1
    assert older.stderr == (
        "bftfs: node 4 does not take the administrator's commands: it runs an older bftfs; update "
        "and restart it there\n"
    )
    assert down.stderr == (
        f"bftfs: node 5 cannot be reached at {address} (Connection refused)\n"
        "bftfs: start node 5 on its machine (`bftfs node run`, or the service there), and see that "
        "its address in cluster.toml is right and can be reached from here\n"
    )


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        encode(UpkeepReply(status=IDLE))[:-1],
        encode(UpkeepReply(status=WorkStatus("scrub", "idle", 7.0, 0.0, 1, None, None, {}))),
        encode(UpkeepReply(status=WorkStatus("scrub", "idle", 1.0, 0.0, 1, None, 1e300, {}))),
    ],
)
def test_a_node_that_lies_is_only_silent(
    office: Office, nonsense: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    with office.running(3, lambda _: nonsense):
        result = office.bftfs("heal", "status", "--node", "3")
    assert result.return_value == 1
    assert "node 3" in result.stderr


def test_what_a_node_says_does_not_forge_output(office: Office) -> None:
    with office.running(3, lambda _: encode(UpkeepReply("no\nbftfs: all is well"))):
        result = office.bftfs("heal", "status", "--node", "3")
    assert result.return_value == 1
    assert result.stderr == "bftfs: node 3 says: no\\x0abftfs: all is well\n"


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (None, "there is no key file"),
        (Identity.generate(b"s" * 32), "is not the key of this cluster's administrator"),
    ],
)
def test_without_the_administrators_key_it_is_said_what_is_missing(
    office: Office, key: Identity | None, reason: str
) -> None:
    office.directory.administrator_key.unlink()
    if key is not None:
        write_identity(office.directory.administrator_key, key)
    result = office.bftfs("metrics", "3")
    assert "node 3 is on another machine, where only the cluster's administrator" in str(
        result.exception
    )
    assert reason in str(result.exception)
    result = office.bftfs("heal", "status")
    assert "or on the administrator's machine, where admin.key is" in str(result.exception)


# --- descriptions -------------------------------------------------------------------------------


def test_who_has_heard_of_a_revocation_and_who_has_not(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    heard = []

    def takes(message: Announcement) -> bytes:
        heard.append(message)
        return encode(UpkeepReply())

    office.sockets[5].close()
    with ExitStack() as nodes:
        for number in range(3):
            nodes.enter_context(office.running(number, takes))
        nodes.enter_context(
            office.running(3, lambda _: encode(UpkeepReply("it\nwas sent an older one")))
        )
        nodes.enter_context(office.running(4, takes, older=True))
        added = office.bftfs("cluster", "add-client", "alice", "--uid", "1000")
        revoked = office.bftfs("cluster", "revoke-client", "alice")
    assert added.return_value == revoked.return_value == 1
    assert revoked.stdout == (
        "Key epoch 1 begins: the clients that are left (0) get its key from the nodes, and write "
        "with it from then on.\nClient alice may not connect any more.\nNodes 0, 1, 2 have cut it "
        "off.\n"
    )
    lines = revoked.stderr.splitlines()
    assert lines[0] == "bftfs: node 3 has not heard of it: it says: it\\x0awas sent an older one"
    assert lines[1].startswith("bftfs: node 4 has not heard of it: it does not take the admin")
    assert lines[2].startswith("bftfs: node 5 has not heard of it: it cannot be reached at tcp:")
    assert lines[3].startswith("bftfs: if you have just changed the clients on another machine")
    assert "`bftfs cluster tell` tells all again; start node 5 on its machine" in lines[4]
    description = description_files.load(office.directory.description)
    last = {message.encoded for message in heard[-3:]}
    assert last == {office.directory.description.read_bytes()}
    assert description.serial == 2


def test_one_node_of_others_is_spoken_of_in_the_singular(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hurry(monkeypatch)
    for each in office.sockets[1:]:
        each.close()
    with office.running(0, lambda _: encode(UpkeepReply())):
        told = office.bftfs("cluster", "tell")
    assert told.return_value == 1
    assert told.stdout == "Node 0 has it.\n"


def test_when_a_client_was_seen_is_what_a_correct_node_says(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node lies about it, two are down."""
    _hurry(monkeypatch)
    office.bftfs("cluster", "add-client", "alice", "--uid", "1000", "--gid", "1000")
    alice = description_files.load(office.directory.description).clients[-1].client
    seen = [1 << 36, 1_790_000_100, 1_790_000_200, 1_790_000_000]
    for each in office.sockets[4:]:
        each.close()
    with ExitStack() as nodes:
        for number, moment in enumerate(seen):
            reply = encode(UpkeepReply(clients=(ClientUse(alice, moment),) * 2))
            nodes.enter_context(office.running(number, lambda _, reply=reply: reply))
        listed = office.bftfs("cluster", "clients", "--use", "--json")
        shown = office.bftfs("cluster", "clients", "--use")
    assert listed.return_value == shown.return_value == 1
    [fact] = json.loads(listed.stdout)
    assert (fact["name"], fact["seen_s"]) == ("alice", 1_790_000_200)
    assert "2026-09-" in shown.stdout
    assert "bftfs: node 4 was not asked: it cannot be reached at" in shown.stderr
    assert office.bftfs("cluster", "clients").return_value == 0


def test_a_node_that_has_lost_its_store_is_of_this_machine_by_its_log(office: Office) -> None:
    """And `status` says what it logged last."""
    description, node = office.made.description, office.directory.node(1)
    assert not reach.is_local(office.directory, description, 1)
    node.log.parent.mkdir(parents=True)
    node.log.write_text("node: the store cannot be used: its first page is damaged\n")
    assert reach.is_local(office.directory, description, 1)
    office.sockets[1].close()
    reported = json.loads(office.bftfs("status", "--json").stdout)["nodes"][1]
    assert any("store cannot be used" in reason for reason in reported["reasons"])


# --- descriptions that were signed elsewhere ------------------------------------------------------


class TwoMachines:
    """Two machines with the administrator's key, of which neither knows of the other; and nodes."""

    def __init__(self, office: Office, path: Path, nodes: ExitStack) -> None:
        self.office = office
        laptop = ClientEntry("laptop", LAPTOP.public_key)
        described = office.made.description.with_client(laptop)
        description_files.store(office.directory.description, described, office.made.administrator)
        self.elsewhere = DataDirectory(path / "elsewhere")
        self.elsewhere.path.mkdir()
        for name in ("cluster.toml", "cluster.toml.sig", "admin.key", "volume.key"):
            shutil.copy(office.directory.path / name, self.elsewhere.path / name)
        self.memberships = []
        self.lies: list[DescriptionReply] = []  # what nodes say first that are asked for theirs
        for number in range(6):
            kept = path / f"node{number}.toml"
            latest = latest_description(office.directory.description, kept)
            membership = LiveMembership(path / "none.toml", kept, latest)
            self.memberships.append(membership)
            nodes.enter_context(office.running(number, partial(self._answer, membership)))

    def _answer(self, membership: LiveMembership, message: Any) -> bytes:
        if isinstance(message, DescriptionRequest) and self.lies:
            return encode(self.lies.pop())
        administrator = Sender(Role.ADMINISTRATOR, ClientId(bytes(16)))
        step = MembershipServer(membership).step
        return encode(step(MemoryStorage(), administrator, message, b"", 0).reply)

    def there(self, *words: str) -> Result:
        """A command on the other machine."""
        words = ("cluster", *words, "--data", str(self.elsewhere.path))
        return CliRunner().invoke(program, words, standalone_mode=False)

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """The clients, present and past, that all nodes know of."""
        [latest] = {each.latest.digest: each.latest for each in self.memberships}.values()
        present = [each.name for each in latest.clients]
        return present, [each.name for each in latest.past_clients]


ADD_PHONE = ("add-client", "phone", "--uid", "1000", "--gid", "1000")
ADD_DESK = ("add-client", "desk", "--uid", "1000", "--gid", "1000")


@pytest.fixture
def machines(office: Office, tmp_path: Path) -> Iterator[TwoMachines]:
    with ExitStack() as nodes:
        yield TwoMachines(office, tmp_path, nodes)


def test_a_change_is_made_in_what_another_machine_has_signed(machines: TwoMachines) -> None:
    machines.office.bftfs("cluster", "revoke-client", "laptop")
    added = machines.there(*ADD_DESK)
    assert added.return_value == 0, added.output
    assert "Nodes have number 2 of the descriptions, signed on another machine" in added.output
    assert machines.names == (["desk"], ["laptop"])
    assert "number 3" in machines.office.bftfs("cluster", "tell").output
    assert description_files.load(machines.office.directory.description).serial == 3


def test_must_fail_where_nodes_are_not_asked_first(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NodeAccess, "descriptions", lambda _: [])
    machines.office.bftfs("cluster", "add-client", "tv", "--uid", "1", "--gid", "1")
    machines.there(*ADD_DESK)
    machines.there("revoke-client", "laptop")
    assert machines.names == (["desk"], ["laptop"]), "tv is forgotten"


def test_of_two_with_one_number_both_revocations_hold(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        machines.there(*ADD_DESK)
    machines.office.bftfs("cluster", "revoke-client", "laptop")
    told = machines.there("tell")
    assert told.return_value == 1
    assert "was sent another one, number 2" in told.output
    added = machines.there("add-client", "tv", "--uid", "1000", "--gid", "1000")
    assert added.return_value == 0, added.output
    other = machines.elsewhere.path / "cluster.other.toml"
    assert "nodes have another description with number 2" in added.output
    assert "Revoked elsewhere, and so here, too: laptop." in added.output
    assert description_files.load(other).past_clients[0].name == "laptop"
    assert machines.names == (["desk", "tv"], ["laptop"])


def keys_of(directory: DataDirectory, client: Identity) -> dict[EpochId, bytes]:
    return epoch_keys_in(description_files.load(directory.description), client)


def test_a_revocation_begins_an_epoch_whose_key_those_get_who_stay(machines: TwoMachines) -> None:
    directory = machines.office.directory
    for name in ("desk", "tv"):
        machines.office.bftfs("cluster", "add-client", name, "--uid", "1000", "--gid", "1000")
    desk, tv = (read_identity(directory.client_key(name)) for name in ("desk", "tv"))
    assert keys_of(directory, desk) == {}
    revoked = machines.office.bftfs("cluster", "revoke-client", "tv")
    assert revoked.return_value == 0, revoked.output
    assert "Key epoch 1 begins: the clients that are left (2) get its key" in revoked.output
    keys = keys_of(directory, desk)
    assert keys_of(directory, LAPTOP) == keys
    assert keys[FIRST_EPOCH] == VOLUME_KEY
    assert len(keys) == 2
    assert keys_of(directory, tv) == {}

    added = machines.office.bftfs("cluster", *ADD_PHONE)
    assert "Give the client that file, cluster.toml and cluster.toml.sig.\n" in added.output
    phone = read_identity(directory.client_key("phone"))
    assert keys_of(directory, phone) == keys

    begun = machines.office.bftfs("cluster", "new-epoch")
    assert "Key epoch 2 begins: the clients that are left (3)" in begun.output
    later = keys_of(directory, phone)
    assert len(later) == 3
    assert later.items() > keys.items()
    for words in (("cluster", "show"), ("cluster", "clients")):
        assert "ey epoch 2, since 20" in machines.office.bftfs(*words).output.replace("\n", " ")


def test_without_the_volume_key_a_client_is_revoked_all_the_same(machines: TwoMachines) -> None:
    machines.office.directory.volume_key.unlink()
    revoked = machines.office.bftfs("cluster", "revoke-client", "laptop")
    assert "bftfs: no new key epoch begins: a revoked client could open" in revoked.stderr
    assert "needs volume.key" in revoked.stderr
    assert machines.names == ([], ["laptop"])
    asked = machines.office.bftfs("cluster", "new-epoch")
    assert "copy the file beside cluster.toml" in str(asked.exception)
    write_volume_key(machines.office.directory.volume_key, VOLUME_KEY)
    assert "Key epoch 1 begins" in machines.office.bftfs("cluster", "new-epoch").output


def test_two_machines_that_begin_an_epoch_at_once_lose_none(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes have one of them; the next change on the other machine takes up both."""
    directory = machines.office.directory
    machines.office.bftfs("cluster", *ADD_DESK)
    machines.office.bftfs("cluster", *ADD_PHONE)
    machines.there("tell")
    phone = read_identity(directory.client_key("phone"))
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        assert "Key epoch 1 begins" in machines.there("revoke-client", "desk").output
    assert (
        "Key epoch 1 begins" in machines.office.bftfs("cluster", "revoke-client", "laptop").output
    )
    theirs, ours = keys_of(machines.elsewhere, phone), keys_of(directory, phone)
    assert theirs.keys() & ours.keys() == {FIRST_EPOCH}

    merged = machines.there("add-client", "tv", "--uid", "1000", "--gid", "1000")
    assert merged.return_value == 0, merged.output
    assert "Revoked elsewhere, and so here, too: laptop." in merged.output
    assert "Key epoch 2 begins: the clients that are left (1)" in merged.output
    both = keys_of(machines.elsewhere, phone)
    assert len(both) == 4
    assert both.items() >= (theirs | ours).items()
    tv = read_identity(machines.elsewhere.client_key("tv"))
    assert keys_of(machines.elsewhere, tv) == both
    assert machines.names == (["phone", "tv"], ["desk", "laptop"])
    [latest] = {each.latest.digest: each.latest for each in machines.memberships}.values()
    assert [each.number for each in latest.epochs] == [1, 1, 2]


def test_an_epoch_that_was_overtaken_is_taken_up_from_nodes(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine does not reach nodes when it signs; they have heard of both then."""
    directory = machines.office.directory
    machines.office.bftfs("cluster", *ADD_PHONE)
    machines.there("tell")
    phone = read_identity(directory.client_key("phone"))
    machines.office.bftfs("cluster", "new-epoch")
    ours = keys_of(directory, phone)
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        for _ in range(2):
            machines.there("new-epoch")
    theirs = keys_of(machines.elsewhere, phone)
    assert machines.there("tell").return_value == 0
    assert not ours.items() <= theirs.items()
    machines.office.directory.description.unlink()  # its files are lost
    merged = machines.there(*ADD_DESK)
    assert merged.return_value == 0, merged.output
    assert "Key epoch 3 begins" in merged.output
    assert keys_of(machines.elsewhere, phone).items() >= (ours | theirs).items()


def test_must_fail_where_epochs_of_others_are_not_taken_up(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = machines.office.directory
    machines.office.bftfs("cluster", *ADD_PHONE)
    machines.there("tell")
    phone = read_identity(directory.client_key("phone"))
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        machines.there("new-epoch")
    machines.office.bftfs("cluster", "new-epoch")
    monkeypatch.setattr(signed_elsewhere, "with_keys_settled", lambda _, described, __: described)
    machines.there("new-epoch")
    lost = keys_of(directory, phone).keys() - keys_of(machines.elsewhere, phone).keys()
    assert len(lost) == 1


def test_who_is_taken_out_by_hand_is_remembered_as_revoked(machines: TwoMachines) -> None:
    path = machines.office.directory.description
    machines.office.bftfs("cluster", *ADD_DESK)
    cut = path.read_text().partition('[[clients]]\nname = "desk"')[0]
    path.write_text(cut)
    done = machines.office.bftfs("cluster", "sign")
    assert done.return_value == 0, done.output
    assert machines.names == (["laptop"], ["desk"])
    [past] = description_files.load(path).past_clients
    assert past.revoked_s >= (past.added_s or 0) > 0

    again = path.read_text().partition("[[past_clients]]")[0]
    entry = '[[clients]]\nname = "desk"\nwrite = true\nsubtree = "/"\npublic_key = '
    key = Identity.generate(b"d" * 32).public_key.hex()
    path.write_text(f'{again}{entry}"{key}"\n')
    assert machines.office.bftfs("cluster", "sign").return_value == 0
    assert machines.names == (["laptop", "desk"], ["desk"]), "that is another one"


def take_out(directory: DataDirectory, name: str) -> None:
    """By hand; the client is the last one."""
    text = directory.description.read_text()
    start = text.index(f'[[clients]]\nname = "{name}"')
    rest = text[start:].split("\n\n", 1)
    directory.description.write_text(text[:start] + (rest[1] if len(rest) > 1 else ""))


def signed_where_no_node_answers(machines: TwoMachines, monkeypatch: pytest.MonkeyPatch) -> Result:
    """Somebody is taken out, and the nodes are told later."""
    machines.office.bftfs("cluster", *ADD_DESK)
    take_out(machines.office.directory, "desk")
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        done = machines.office.bftfs("cluster", "sign")
    assert machines.office.bftfs("cluster", "tell").return_value == 0
    return done


def test_who_is_taken_out_is_revoked_also_where_no_node_answers(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = signed_where_no_node_answers(machines, monkeypatch)
    assert "Key epoch 1 begins" in done.output
    assert machines.names == (["laptop"], ["desk"])


def test_must_fail_where_nobody_has_noted_what_was_signed(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signed_elsewhere, "_signed_here", lambda *_: [])
    done = signed_where_no_node_answers(machines, monkeypatch)
    assert "it is not known here what" in done.stderr
    assert "Key epoch" not in done.output
    assert machines.names == (["laptop"], [])


def may_write(machines: TwoMachines) -> set[bool]:
    """Whether the laptop may write, as each node sees it."""
    found = (each.principal(LAPTOP.public_key) for each in machines.memberships)
    return {each.grant.write for each in found if each is not None}


def edit(directory: DataDirectory, before: str, after: str) -> None:
    """By hand."""
    text = directory.description.read_text()
    assert before in text
    directory.description.write_text(text.replace(before, after, 1))


def signed_without_knowing_from_what(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> Result:
    """A right is taken. Another machine signs what was made there from it is not known what."""
    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        machines.there(*ADD_DESK)
    edit(machines.office.directory, "write = true", "write = false")
    assert machines.office.bftfs("cluster", "sign").return_value == 0
    assert may_write(machines) == {False}
    description_files.as_signed(machines.elsewhere.description).unlink()
    edit(machines.elsewhere, 'name = "desk"', 'name = "table"')
    return machines.there("sign")


def test_what_was_made_from_is_unknown_and_gives_no_right_back(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = signed_without_knowing_from_what(machines, monkeypatch)
    assert "it is not known here what" in done.stderr
    assert machines.names == (["laptop", "table"], [])
    assert may_write(machines) == {False}
    again = machines.there("sign")
    assert "Only the rights that both grant: laptop." in again.output
    assert may_write(machines) == {False}
    edit(machines.elsewhere, "write = false", "write = true")
    assert machines.there("sign").return_value == 0
    assert may_write(machines) == {True}, "somebody who knew has given it again"


def test_must_fail_where_what_names_nothing_knows_of_all(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    knows_of = ClusterDescription.knows_of

    def as_before(self: ClusterDescription, other: ClusterDescription) -> bool:
        return not self.follows or knows_of(self, other)

    monkeypatch.setattr(ClusterDescription, "knows_of", as_before)
    signed_without_knowing_from_what(machines, monkeypatch)
    assert may_write(machines) == {True}, "which the administrator had taken from it"


def test_a_right_that_was_taken_elsewhere_stays_taken(
    machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other machine signs twice without reaching nodes: its number is the higher one."""

    with monkeypatch.context() as alone:
        alone.setattr(NodeAccess, "_ask", lambda *_: {})
        machines.there(*ADD_DESK)
        machines.there("add-client", "tv", "--uid", "1000", "--gid", "1000")
    edit(machines.office.directory, "write = true", "write = false")
    assert machines.office.bftfs("cluster", "sign").return_value == 0
    assert may_write(machines) == {False}

    told = machines.there("tell")
    assert "only the rights that all of them grant" in told.output
    assert machines.names == (["laptop", "desk", "tv"], [])
    assert may_write(machines) == {False}

    merged = machines.there("add-client", "phone", "--uid", "1000", "--gid", "1000")
    assert merged.return_value == 0, merged.output
    assert (
        "without number 3 knowing of it. Only the rights that both grant: laptop." in merged.output
    )
    assert may_write(machines) == {False}
    assert not any(each.narrowed for each in machines.memberships)

    edit(machines.elsewhere, "write = false", "write = true")
    assert machines.there("sign").return_value == 0
    assert may_write(machines) == {True}
    assert all(not each.others.signed for each in machines.memberships)


def test_each_of_several_that_were_not_known_takes_what_it_takes() -> None:
    made = cluster.create(["unix:/a"], t=0, b=0, draw=os.urandom)
    entry = ClientEntry("laptop", LAPTOP.public_key, Grant((1, 2), gids=(3,)))
    before = made.description.with_client(entry)

    def fork(**changes: Any) -> ClusterDescription:
        follows = {"follows": known.follows, "follows_from": known.follows_from}
        changed = replace(before, clients=(replace(entry, **changes),))
        return replace(changed, serial=before.serial + 1, **follows)

    known = before.following(())
    forks = [
        fork(grant=Grant((1, 2), gids=(3,), write=False)),
        fork(grant=Grant((1,), gids=(3,))),
        fork(share=10),
    ]
    latest = replace(fork(), serial=9)
    assert not any(map(latest.knows_of, forks))
    [merged] = signed_elsewhere._narrowed(latest, latest, [before, *forks]).clients
    assert merged.grant == Grant((1,), gids=(3,), write=False)
    assert merged.share == 10
    by_hand = replace(latest, clients=(replace(entry, grant=Grant((2,))),))
    assert signed_elsewhere._narrowed(by_hand, latest, forks) == by_hand


def test_what_was_made_from_an_older_one_is_not_signed(machines: TwoMachines) -> None:
    machines.office.bftfs("cluster", "revoke-client", "laptop")
    refused = machines.there("sign")
    assert isinstance(refused.exception, UsageError)
    assert "was made from number 1 of the descriptions, and nodes have number 2" in str(
        refused.exception
    )
    other = machines.elsewhere.path / "cluster.other.toml"
    for suffix in ("", ".sig"):
        shutil.copy(f"{other}{suffix}", f"{machines.elsewhere.description}{suffix}")
    assert machines.there("sign").return_value == 0
    assert machines.names == ([], ["laptop"])


def test_who_names_what_it_does_not_send_is_waited_for_once(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a node that lies would hold a revocation up for half a minute."""
    _hurry(monkeypatch)
    signed = description_files.read(office.directory.description)
    asked: list[bytes] = []

    def answer(message: DescriptionRequest) -> bytes | None:
        asked.append(message.digest)
        if message.digest:
            return None
        others = tuple(bytes([number]) * 32 for number in range(4))
        return encode(DescriptionReply(signed.encoded, signed.signature, others))

    for each in office.sockets[1:]:
        each.close()
    with office.running(0, answer), NodeAccess(office.directory, signed.description) as access:
        assert [each.description for each in access.descriptions()] == [signed.description]
    assert len(set(asked)) == 2, "the latest, and one of those that it has named"


def test_what_somebody_else_has_signed_is_not_taken(machines: TwoMachines) -> None:
    """A lying node offers a later description of its own, nonsense, and an older one."""
    liar = Identity.generate(b"l" * 32)
    here = machines.office.directory
    mine = description_files.read(here.description)
    later = replace(mine.description, administrator=liar.public_key, clients=(), serial=99)
    forged = description_files.store(here.path / "forged.toml", later, liar)
    machines.office.bftfs("cluster", *ADD_DESK)
    machines.lies = [
        DescriptionReply(forged.encoded, forged.signature),
        DescriptionReply(mine.encoded + b"#", mine.signature),
        DescriptionReply(mine.encoded, mine.signature),
    ]
    done = machines.office.bftfs("cluster", "add-client", "tv", "--uid", "1000", "--gid", "1000")
    assert done.return_value == 0, done.output
    assert not machines.lies
    assert machines.names == (["laptop", "desk", "tv"], [])
