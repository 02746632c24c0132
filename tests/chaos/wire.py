"""The wire between the machines: every IP packet passes here, and may be held up or lost.

The kernel's own emulator of bad networks (netem) is a module that many kernels lack. So each
machine's network interface is a TUN device whose other end this process holds: it forwards packets
from one device to another, and for each ordered pair of machines it can lose, delay, reorder,
duplicate and throttle them. TCP and everything above it are the real ones.

    python -m tests.chaos.wire SEED NAMESPACE…

Machine i has the address 10.78.0.(i + 1). Rules come as lines of JSON on standard input, from the
machine, to the machine, the quality of the way; each line is answered on standard output once it
is in force.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

MTU_BYTES = 16_384
_PREFIX = bytes((10, 78, 0))
_PACKETS_PER_TURN = 64
_QUEUE_BYTES = 4 << 20  # that wait for a throttled way; what is more is lost

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_CLONE_NEWNET = 0x40000000


def address(machine: int) -> str:
    """The machine's IP address."""
    return f"10.78.0.{machine + 1}"


@dataclass(frozen=True, slots=True)
class Way:
    """How packets fare from one machine to another."""

    loss: float = 0.0  # the share of packets that is lost; 1 cuts the way
    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # added to the delay of each packet by chance, which reorders them
    duplicates: float = 0.0  # the share of packets that arrives twice
    bytes_per_s: float = 0.0  # 0: as fast as it goes

    @property
    def free(self) -> bool:
        """Whether the way does nothing to packets."""
        return self == Way()


FREE = Way()
CUT = Way(loss=1.0)


class Wire:
    """Forwards packets between devices."""

    def __init__(self, devices: Sequence[int], seed: int) -> None:
        self._devices = devices
        self._machine = {device: number for number, device in enumerate(devices)}
        self._random = Random(seed)
        self._ways: dict[tuple[int, int], Way] = {}
        self._free_at: dict[tuple[int, int], float] = {}  # when a throttled way is idle
        self._held: list[tuple[float, int, int, bytes]] = []  # due, order, device, packet
        self._order = itertools.count()

    def change(self, source: int, target: int, way: Way) -> None:
        """The way between two machines is such from now on."""
        if way.free:
            self._ways.pop((source, target), None)
        else:
            self._ways[source, target] = way

    def forward(self, device: int) -> None:
        """Take what a machine sends."""
        source = self._machine[device]
        for _ in range(_PACKETS_PER_TURN):
            try:
                packet = os.read(device, 65536)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4 or packet[16:19] != _PREFIX:
                continue
            target = packet[19] - 1
            if not 0 <= target < len(self._devices):
                continue
            way = self._ways.get((source, target))
            if way is None:
                self._deliver(self._devices[target], packet)
            else:
                self._impede(way, source, target, packet)

    def _impede(self, way: Way, source: int, target: int, packet: bytes) -> None:
        draw = self._random.random
        if draw() < way.loss:
            return
        now = time.monotonic()
        due = now + (way.delay_ms + draw() * way.jitter_ms) / 1000
        if way.bytes_per_s:
            begun = max(now, self._free_at.get((source, target), 0.0))
            if (begun - now) * way.bytes_per_s > _QUEUE_BYTES:
                return
            ended = begun + len(packet) / way.bytes_per_s
            self._free_at[source, target] = ended
            due += ended - now
        for _ in range(2 if draw() < way.duplicates else 1):
            heapq.heappush(self._held, (due, next(self._order), self._devices[target], packet))

    def deliver_due(self) -> float | None:
        """Deliver what has been held up long enough; in how many seconds there is more to do."""
        while self._held:
            due, _, device, packet = self._held[0]
            remaining = due - time.monotonic()
            if remaining > 0:
                return remaining
            heapq.heappop(self._held)
            self._deliver(device, packet)
        return None

    def _deliver(self, device: int, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # its queue is full, or it is down: a lost packet
            os.write(device, packet)


def rule(source: int, target: int, way: Way) -> str:
    """The line that changes a way."""
    return json.dumps({"source": source, "target": target, **asdict(way)}) + "\n"


def _device_in(namespace: str) -> int:
    """A TUN device called eth0 in a network namespace; this process returns to its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(there, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TUN | _IFF_NO_PI))
        return device
    finally:
        libc.setns(home, _CLONE_NEWNET)
        os.close(home)
        os.close(there)


def main(seed: int, namespaces: Sequence[str]) -> None:
    """Forward until standard input ends."""
    devices = [_device_in(namespace) for namespace in namespaces]
    wire = Wire(devices, seed)
    print("ready", flush=True)
    epoll = select.epoll()
    for descriptor in (0, *devices):
        epoll.register(descriptor, select.EPOLLIN)
    received = b""
    while True:
        wait = wire.deliver_due()
        for descriptor, _ in epoll.poll(wait):
            if descriptor:
                wire.forward(descriptor)
                continue
            news = os.read(0, 65536)
            if not news:
                return
            *lines, received = (received + news).split(b"\n")
            for line in lines:
                fields = json.loads(line)
                wire.change(fields.pop("source"), fields.pop("target"), Way(**fields))
                print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
