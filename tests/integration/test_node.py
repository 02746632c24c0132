"""One node process: commit before reply, crashes, floods, garbage, full disks, idleness."""

from __future__ import annotations

import errno
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bftfs.asking.refusal import Refused
from bftfs.cluster import ClientEntry
from bftfs.conversation import Conversation, Pause, Receive, Send
from bftfs.credentials import Grant
from bftfs.crypto.keys import Identity
from bftfs.envelope import HealthReply, HealthRequest
from bftfs.identifiers import NodeId
from bftfs.limits import KIB, MIB
from bftfs.runtime.blocking import BlockingNetwork
from bftfs.wire.channel import HELLO_BYTES, MAGIC, WELCOME_BYTES, ClientChannel
from bftfs.wire.codec import encode
from nodes.connections import (
    CONNECTIONS_PER_PRINCIPAL,
    HELD_BYTES,
    OFFENCES,
    STRANGERS_MAX,
    UNPROVEN_PER_PRINCIPAL,
)
from tests.integration.counting import REPLIES, Adopt, Counted, Fetch, Increment, ask
from tests.integration.deployment import PROJECT, Deployment

Connect = Callable[..., BlockingNetwork]
ZERO = NodeId(0)


def page(deployment: Deployment, path: str, node: int = 0) -> tuple[int, str]:
    """What a node's metrics socket answers."""
    connection = http.client.HTTPConnection("node")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(deployment.node(node).metrics))
    connection.request("GET", path)
    response = connection.getresponse()
    content = response.read().decode()
    connection.close()
    return response.status, content


def metric(deployment: Deployment, name: str, node: int = 0) -> float:
    """One of a node's metrics; 0 if there is none of that name."""
    _, text = page(deployment, "/metrics", node)
    for line in text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[-1])
    return 0


def resident_kib(deployment: Deployment, node: int = 0) -> int:
    status = Path(f"/proc/{deployment.processes[node].pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


# --- durability ------------------------------------------------------------------------------


def test_kill_minus_nine_loses_nothing_acknowledged(counting: Deployment, connect: Connect) -> None:
    counting.start([0])
    network = connect(counting)
    acknowledged: dict[int, int] = dict.fromkeys(range(8), 0)
    killed = False

    async def count_until_silence(counter: int) -> Conversation[None]:
        nonlocal killed
        while True:
            await Send(ZERO, Increment(b"%d" % counter, 1, b"ballast" * 20))
            while (delivery := await Receive(patience_us=400_000)) is None:
                if killed:
                    return
            acknowledged[counter] = delivery.message.value
            if acknowledged[counter] == 40 and counter == 0:
                counting.processes[0].send_signal(signal.SIGKILL)
                killed = True

    async def fetch(counter: int) -> Conversation[int]:
        reply, _ = await ask(ZERO, Fetch(b"%d" % counter))
        return reply.value

    network.perform_many(map(count_until_silence, acknowledged), in_flight=8)
    assert counting.processes.pop(0).wait() == -signal.SIGKILL
    assert acknowledged[0] >= 40
    counting.start([0])
    values = network.perform_many(map(fetch, acknowledged), in_flight=8)
    for counter, value in enumerate(values):
        # One more may have been committed, whose reply was lost.
        assert acknowledged[counter] <= value <= acknowledged[counter] + 1


def test_sigterm_ends_the_node_cleanly_and_it_starts_again(
    counting: Deployment, connect: Connect
) -> None:
    counting.start([0])
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 5)))
    assert counting.node(0).pid.read_text() == f"{counting.processes[0].pid}\n"
    assert counting.stop(0) == 0
    assert not counting.node(0).pid.exists()
    assert not counting.node(0).socket.exists()
    log = [json.loads(line) for line in counting.node(0).log.read_text().splitlines()]
    assert [entry["event"] for entry in log] == ["ready", "stopped"]
    assert log[0]["node"] == 0
    counting.start([0])
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(5)


def test_concurrent_requests_share_commits_and_reads_need_none(
    counting: Deployment, connect: Connect
) -> None:
    counting.start([0])
    network = connect(counting)
    network.perform(ask(ZERO, Fetch(b"c")))

    async def flood(count: int, message: Any) -> Conversation[None]:
        for _ in range(count):
            await Send(ZERO, message)
        for _ in range(count):
            assert await Receive(patience_us=5_000_000) is not None

    network.perform(flood(1000, Increment(b"c", 1)))
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(1000)
    commits = metric(counting, "bftfs_commits_total")
    assert 1 <= commits <= 200
    network.perform(flood(1000, Fetch(b"c")))
    assert metric(counting, "bftfs_commits_total") == commits
    assert metric(counting, 'bftfs_requests_total{message="Fetch"}') == 1002


def test_a_node_tells_how_it_is_over_http(counting: Deployment, connect: Connect) -> None:
    counting.start([0])
    connect(counting).perform(ask(ZERO, Increment(b"c", 1)))
    status, text = page(counting, "/health")
    assert status == 200
    health = json.loads(text)
    assert (health["healthy"], health["reasons"]) == (True, [])
    assert health["pid"] == counting.processes[0].pid
    assert health["memory_bytes"] < 200 * MIB
    _, text = page(counting, "/metrics")
    assert 'bftfs_requests_total{message="Increment"} 1.0' in text
    assert metric(counting, "bftfs_healthy") == 1
    assert metric(counting, "bftfs_store_bytes") > 0
    assert page(counting, "/etc/passwd")[0] == 404


# --- peers -----------------------------------------------------------------------------------


def test_a_node_fetches_from_a_peer_what_a_request_needs(
    counting: Deployment, connect: Connect
) -> None:
    counting.start([0, 1])
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 7)))

    async def adopt() -> Conversation[Any]:
        return (await ask(NodeId(1), Adopt(b"c", 0)))[0]

    assert network.perform_many([adopt() for _ in range(20)], in_flight=20) == [Counted(7)] * 20
    assert network.perform(ask(NodeId(1), Fetch(b"c")))[0] == Counted(7)
    assert metric(counting, 'bftfs_requests_total{message="Fetch"}') == 1  # they shared it


def test_a_request_is_refused_if_no_peer_supplies_what_it_needs(
    counting: Deployment, connect: Connect
) -> None:
    counting.start([0])
    reply, _ = connect(counting).perform(ask(ZERO, Adopt(b"c", 1)))
    assert isinstance(reply, Refused)
    assert reply.code == errno.EAGAIN
    status, text = page(counting, "/health")
    assert status == 200  # the peer's failure is not this node's
    assert "node 1 could not be reached" in json.loads(text)["reasons"][0]


def test_a_peer_that_comes_back_is_dialled_again(counting: Deployment, connect: Connect) -> None:
    counting.start([0, 1])
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"a", 1)))
    network.perform(ask(ZERO, Increment(b"b", 2)))
    assert network.perform(ask(NodeId(1), Adopt(b"a", 0)))[0] == Counted(1)
    counting.kill(0)
    counting.start([0])
    assert network.perform(ask(NodeId(1), Adopt(b"b", 0)))[0] == Counted(2)


# --- hostile peers ---------------------------------------------------------------------------


class RawPeer:
    """A principal that speaks the channel, and can then send anything."""

    def __init__(self, deployment: Deployment, identity: Identity) -> None:
        member = deployment.description.member(ZERO)
        self.channel = ClientChannel(
            identity=identity,
            node=ZERO,
            node_public_key=member.public_key,
            cluster_id=deployment.description.cluster_id,
            view=1,
            entropy=os.urandom(32),
        )
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(deployment.node(0).socket))

    def greet(self) -> None:
        self.socket.sendall(self.channel.opening())
        while not self.channel.established:
            data = self.socket.recv(4096)
            assert data, "cut off"
            self.channel.receive(data)
        self.socket.sendall(b"".join(self.channel.confirmation()))

    def sealed(self, message: Any, number: int = 1) -> bytes:
        return b"".join(self.channel.seal_request(number, encode(message)))

    def is_cut_off(self) -> bool:
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            return True
        return True


@pytest.fixture
def peer(counting: Deployment) -> Iterator[Callable[..., RawPeer]]:
    peers: list[RawPeer] = []

    def made(client: int = 0) -> RawPeer:
        peers.append(RawPeer(counting, counting.clients[client]))
        return peers[-1]

    counting.start([0])
    yield made
    for each in peers:
        each.socket.close()


def closed(deployment: Deployment, reason: str) -> float:
    return metric(deployment, f'bftfs_connections_closed_total{{reason="{reason}"}}')


def test_garbage_closes_its_own_connection_only(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 1)))
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n" + b"x" * 100,
        MAGIC + b"m" * HELLO_BYTES,
        b"bft1" + b"m" * 60,
        b"\0" + os.urandom(4095),
    ):
        stranger = peer()
        stranger.socket.sendall(garbage)
        assert stranger.is_cut_off()
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(1)
    assert network.links.open == 1  # still the one connection
    reasons = {"MalformedMessage": 2, "InvalidAuthenticator": 1, "OtherVersion": 1}
    assert {reason: closed(counting, reason) for reason in reasons} == reasons


def test_a_changed_request_closes_the_connection(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    changed = peer()
    changed.greet()
    request = bytearray(changed.sealed(Increment(b"c", 1)))
    request[-1] ^= 1
    changed.socket.sendall(request)
    assert changed.is_cut_off()

    repeated = peer()
    repeated.greet()
    request = bytearray(repeated.sealed(Increment(b"c", 1)))
    repeated.socket.sendall(request)
    assert repeated.socket.recv(4096)
    repeated.socket.sendall(request)
    assert repeated.is_cut_off()
    assert closed(counting, "InvalidAuthenticator") == 2

    unknown = peer()
    unknown.greet()
    unknown.socket.sendall(b"".join(unknown.channel.seal_request(1, b"\x91\xcd\xff\xff")))
    assert unknown.is_cut_off()
    assert closed(counting, "MalformedMessage") == 1
    assert connect(counting).perform(ask(ZERO, Fetch(b"c")))[0] == Counted(1)


def test_an_unknown_key_is_refused(counting: Deployment, peer: Callable[..., RawPeer]) -> None:
    peer()
    stranger = RawPeer(counting, Identity(os.urandom(32)))
    stranger.socket.sendall(stranger.channel.opening())
    assert stranger.is_cut_off()
    stranger.socket.close()


def test_a_running_node_admits_a_new_client(
    counting: Deployment, peer: Callable[..., RawPeer]
) -> None:
    peer().greet()
    identity = Identity(os.urandom(32))
    counting.describe(
        counting.description.with_client(ClientEntry("late", identity.public_key, Grant()))
    )
    newcomer = RawPeer(counting, identity)
    newcomer.greet()
    newcomer.socket.sendall(newcomer.sealed(Fetch(b"c")))
    assert newcomer.socket.recv(4096)
    newcomer.socket.close()


@pytest.mark.parametrize("grant", [None, Grant(write=False)])
def test_a_running_node_cuts_off_a_client_whose_right_was_taken(
    counting: Deployment, peer: Callable[..., RawPeer], grant: Grant | None
) -> None:
    taken, kept = peer(0), peer(1)
    taken.greet()
    kept.greet()
    description = counting.description.without_client("client0", at_s=7)
    if grant is not None:
        description = counting.description
        clients = (replace(description.clients[0], grant=grant), *description.clients[1:])
        description = replace(description, clients=clients, serial=description.serial + 1)
    counting.describe(description)
    counting.processes[0].send_signal(signal.SIGHUP)
    assert taken.is_cut_off()
    assert closed(counting, "no longer admitted") == 1
    kept.socket.sendall(kept.sealed(Fetch(b"c")))
    assert kept.socket.recv(4096)
    again = peer(0)
    again.socket.sendall(again.channel.opening())
    if grant is None:
        assert again.is_cut_off()
    else:
        assert again.socket.recv(4096)


def test_only_the_administrator_changes_who_may_connect(
    counting: Deployment, peer: Callable[..., RawPeer]
) -> None:
    peer().greet()
    identity, usurper = Identity(os.urandom(32)), Identity(os.urandom(32))
    honest, signed_by = counting.description, counting.administrator
    forged = replace(
        honest.with_client(ClientEntry("forged", identity.public_key)),
        administrator=usurper.public_key,
    )
    counting.administrator = usurper
    counting.describe(forged)
    stranger = RawPeer(counting, identity)
    stranger.socket.sendall(stranger.channel.opening())
    assert stranger.is_cut_off()

    # What is not about clients is taken over at the next start.
    counting.administrator = signed_by
    counting.describe(
        replace(honest.with_client(ClientEntry("new", identity.public_key)), view=honest.view + 1)
    )
    late = RawPeer(counting, identity)
    late.greet()
    late.socket.close()
    log = counting.node(0).log.read_text()
    assert "names another administrator" in log
    assert "more than its clients has changed" in log
    peer(1).greet()


def test_who_keeps_breaking_the_rules_has_to_wait_alone(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    for _ in range(OFFENCES):
        offender = peer(1)
        offender.greet()
        offender.socket.sendall(offender.sealed(Fetch(b"c")))
        assert offender.socket.recv(4096)
        offender.socket.sendall(b"".join(offender.channel.seal_request(2, b"garbage")))
        assert offender.is_cut_off()
    barred = peer(1)
    barred.socket.sendall(barred.channel.opening())
    assert barred.is_cut_off()
    assert closed(counting, "barred") == 1
    reply, _ = connect(counting, 0).perform(ask(ZERO, Fetch(b"c")))
    assert isinstance(reply, Counted)


def test_one_principal_has_a_limited_number_of_connections(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    admitted = [peer(1) for _ in range(CONNECTIONS_PER_PRINCIPAL)]
    for each in admitted:
        each.greet()
    for _ in range(64 - CONNECTIONS_PER_PRINCIPAL):
        one_more = peer(1)
        one_more.socket.sendall(one_more.channel.opening())
        assert one_more.is_cut_off()
    assert isinstance(connect(counting, 0).perform(ask(ZERO, Fetch(b"c")))[0], Counted)


def test_recorded_greetings_take_nobodys_places(
    counting: Deployment, peer: Callable[..., RawPeer]
) -> None:
    """The network sends what a client has sent before: it is answered, and that is all."""
    recorded = peer(1).channel.opening()
    replays = [peer(1) for _ in range(UNPROVEN_PER_PRINCIPAL + 4)]
    for each in replays:
        each.socket.sendall(recorded)
        assert len(each.socket.recv(4096)) == WELCOME_BYTES
    assert all(each.is_cut_off() for each in replays[:4])
    for each in [peer(1) for _ in range(CONNECTIONS_PER_PRINCIPAL)]:
        each.greet()
        each.socket.sendall(each.sealed(Fetch(b"c")))
        assert each.socket.recv(4096)
    for each in replays[-2:]:
        each.socket.sendall(os.urandom(HELLO_BYTES))
        assert each.is_cut_off()
    assert closed(counting, "too many greetings in one name") >= 4
    assert closed(counting, "InvalidAuthenticator") == 2


def test_a_thousand_strangers_keep_nobody_out(
    counting: Deployment, peer: Callable[..., RawPeer]
) -> None:
    """They say nothing, or half of a greeting, and come from where the client is."""
    for _ in range(10):
        strangers = []
        for number in range(100):
            strangers.append(peer())
            if number % 2:
                strangers[-1].socket.sendall(strangers[-1].channel.opening()[: HELLO_BYTES // 2])
        client = peer(1)
        client.greet()
        client.socket.sendall(client.sealed(Fetch(b"c")))
        assert client.socket.recv(4096)
        for each in strangers[: 100 - STRANGERS_MAX]:
            assert each.is_cut_off()
        for each in (*strangers, client):
            each.socket.close()
    assert closed(counting, "too many strangers") >= 10 * (100 - STRANGERS_MAX)


def test_four_keys_that_make_requests_wait_leave_others_their_share(tmp_path: Path) -> None:
    """Their requests need what no peer gives: that of a correct client waits beside them."""
    deployment = Deployment(
        tmp_path / "cluster", module="tests.integration.counting_node", clients=5
    )
    networks = [
        BlockingNetwork(deployment.description, identity, decode=REPLIES.decode)
        for identity in deployment.clients
    ]
    correct, *attackers = networks

    async def provoke(attacker: int) -> Conversation[Any]:
        """As many as it can; returns the first refusal, which comes when its share is full."""
        for number in range(200):
            await Send(ZERO, Adopt(b"%d of %d" % (number, attacker), 5))
        delivery = await Receive(patience_us=10_000_000)
        return delivery and delivery.message

    try:
        deployment.start([0, 1])
        correct.perform(ask(NodeId(1), Increment(b"c", 7)))
        for number, attacker in enumerate(attackers):
            assert isinstance(attacker.perform(provoke(number)), Refused)
        assert correct.perform(ask(ZERO, Adopt(b"c", 1)))[0] == Counted(7)
    finally:
        for network in networks:
            network.close()
        deployment.close()


def test_a_node_without_free_descriptors_waits_for_one(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    network = connect(counting)
    network.perform(ask(ZERO, Fetch(b"c")))
    process = counting.processes[0].pid
    in_use = len(os.listdir(f"/proc/{process}/fd"))
    resource.prlimit(process, resource.RLIMIT_NOFILE, (in_use + 3, in_use + 3))
    silent = [peer() for _ in range(8)]
    network.perform(ask(ZERO, Fetch(b"c")))
    used = cpu_ticks(process)
    time.sleep(0.5)
    assert cpu_ticks(process) - used <= 5  # hundredths of a second: it does not spin
    for each in silent:
        each.socket.close()
    one_more = peer()
    one_more.greet()
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(0)


def cpu_ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_peer_that_takes_no_answers_costs_bounded_memory(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"big", 1), b"b" * 4 * MIB))
    before = resident_kib(counting)
    deaf = peer(1)
    deaf.greet()
    deaf.socket.setblocking(False)
    request = deaf.sealed
    sent = 0
    for number in range(2000):
        try:
            deaf.socket.send(request(Fetch(b"big", True), number))
        except BlockingIOError:
            break
        sent += 1
    assert sent >= 100  # 400 MiB of answers
    for _ in range(50):
        assert network.perform(ask(ZERO, Fetch(b"big")))[0] == Counted(1)
    assert metric(counting, 'bftfs_requests_total{message="Fetch"}') < sent
    assert resident_kib(counting) - before < 64 * KIB


def test_requests_that_never_end_cost_bounded_memory(
    counting: Deployment, peer: Callable[..., RawPeer], connect: Connect
) -> None:
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 1)))
    # Each announces a body of 8 MiB and withholds its last byte.
    announced = 8 * MIB
    cut_off = 0
    for number in range(HELD_BYTES // announced + 4):
        greedy = peer(number % 2)
        greedy.greet()
        header, _ = greedy.channel.seal_request(1, encode(Fetch(b"c")), bytes(announced))
        greedy.socket.sendall(header)
        try:
            greedy.socket.sendall(bytes(announced - 1))
        except OSError:
            cut_off += 1
    assert network.perform(ask(ZERO, Fetch(b"c")))[0] == Counted(1)
    assert closed(counting, "held too much") >= 3
    assert resident_kib(counting) < 200 * KIB


# --- full disks ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(counting: Deployment) -> Iterator[Path]:
    """A file system of 3 MiB in the place of a node's directory."""
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    path = counting.node(0).path
    key = counting.node(0).key.read_bytes()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(path)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    counting.node(0).key.write_bytes(key)
    counting.node(0).key.chmod(0o600)
    yield path
    counting.close()
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_refuses_writers_and_serves_readers(
    counting: Deployment, connect: Connect, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"b" * MIB)
    counting.start([0])
    network = connect(counting)
    acknowledged = 0
    while True:
        reply, _ = network.perform(ask(ZERO, Increment(b"%d" % acknowledged, 1), b"b" * 64 * KIB))
        if isinstance(reply, Refused):
            break
        acknowledged += 1
        assert acknowledged < 100
    assert reply.code == errno.ENOSPC
    for counter in range(acknowledged):
        reply, body = network.perform(ask(ZERO, Fetch(b"%d" % counter, True)))
        assert (reply, len(body)) == (Counted(1), 64 * KIB)
    health, _ = network.perform(ask(ZERO, HealthRequest()))
    assert isinstance(health, HealthReply)
    assert not health.healthy
    assert health.reasons[0] == "writes are refused: the disk is full"
    ballast.unlink()
    deadline = time.monotonic() + 10
    while True:
        reply, _ = network.perform(ask(ZERO, Increment(b"again", 1)))
        if isinstance(reply, Counted):
            break
        assert time.monotonic() < deadline
        network.perform(pause(50_000))
    health, _ = network.perform(ask(ZERO, HealthRequest()))
    assert health.healthy


async def pause(duration_us: int) -> Conversation[None]:
    await Pause(duration_us)


# --- starting and idling ---------------------------------------------------------------------


def start_and_fail(deployment: Deployment, *flags: str) -> str:
    """What a node says that ends at once, with exit code 2."""
    ended = subprocess.run(
        [
            sys.executable,
            *flags,
            "-m",
            deployment.module,
            "--data",
            str(deployment.node(0).path),
            "--cluster",
            str(deployment.directory.description),
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_node_does_not_run_without_assertions(counting: Deployment) -> None:
    assert "start it without -O" in start_and_fail(counting, "-O")


def test_mistakes_are_one_clear_message(counting: Deployment) -> None:
    counting.start([0])
    assert "the store is in use by process" in start_and_fail(counting)
    counting.stop(0)
    settings = counting.node(0).configuration
    settings.write_text('durabilty = "sync"\n')
    assert "there is no setting 'durabilty'" in start_and_fail(counting)
    settings.write_text("durability = 1")
    assert 'durability = 1; write "sync" or "interval"' in start_and_fail(counting)
    settings.write_text("durability = ")
    assert "cannot be read" in start_and_fail(counting)
    settings.unlink()
    counting.node(0).key.unlink()
    assert "there is no key file" in start_and_fail(counting)
    counting.node(1).key.rename(counting.node(0).key)
    assert "belongs to node 0" in start_and_fail(counting)


def test_an_idle_node_sleeps(counting: Deployment, connect: Connect) -> None:
    counting.start([0])
    network = connect(counting)
    network.perform(ask(ZERO, Increment(b"c", 1)))

    def switches() -> int:
        status = Path(f"/proc/{counting.processes[0].pid}/status").read_text()
        return sum(int(line.split()[1]) for line in status.splitlines() if "ctxt_switches" in line)

    time.sleep(0.2)
    before = switches()
    time.sleep(1.5)
    assert switches() == before
