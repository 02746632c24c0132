"""A node's report on itself: its counters and its health, also as metrics over HTTP.

Concurrency: the node's loop counts. The exposition's thread, which sleeps until somebody asks,
reads the counters one by one, so that they may be of different moments.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import BaseServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from bftfs.crypto.digest import Body
from bftfs.envelope import Decision, HealthFigure, HealthReply
from bftfs.identifiers import ObjectId
from bftfs.limits import DECISIONS_TOLD
from bftfs.runtime import clock
from bftfs.runtime.links import Links
from bftfs.server.own_clock import OwnClock
from bftfs.server.recovery import Recovery
from bftfs.server.room import Room
from bftfs.server.step import Ready, Sender
from bftfs.server.tally import Figure, counter, figures
from bftfs.storage import StorageView
from nodes.membership import RESTART, LiveMembership

ASKING_PATIENCE_S = 5.0  # for one HTTP request: one thread serves all of them
LIVE_PATIENCE_S = 5.0  # for the node's loop to turn

# Told as 0 until they happen: Prometheus sees no increase in a counter's first value.
REFUSALS = ("EAGAIN", "EDQUOT", "EIO", "ENODATA", "ENOSPC")
OFFENCES = ("InvalidAuthenticator", "MalformedMessage", "OtherVersion", "ProtocolViolation")

_PLAIN = "text/plain"


@dataclass(slots=True)
class LoopTally:
    """The counters of a node's loop."""

    requests: Counter[type] = field(default_factory=Counter)  # by message class
    refused: Counter[int] = field(default_factory=Counter)  # by errno
    closed: Counter[str] = field(default_factory=Counter)  # connections, by reason
    accepted: int = counter("Connections that were accepted.", name="connections_accepted")
    batches: int = counter("Batches that were stepped.")
    commits: int = counter("Batches that were committed.")
    commit_s: float = counter("Time spent in commits.", name="commit_seconds")
    faults: int = counter("Requests that failed because of a bug in the node.")
    bytes_received: int = counter("Bytes received.", name="received_bytes")
    bytes_sent: int = counter("Bytes of replies sent.", name="sent_bytes")


@dataclass(slots=True, eq=False)
class NodeCollector(Collector):
    """Makes metrics of a node's tally, health and gauges."""

    tally: LoopTally
    health: Callable[[], HealthReply]
    gauges: Callable[[], Iterable[Figure]]

    def collect(self) -> Iterator[Metric]:
        """All metrics of the node."""
        tally, health = self.tally, self.health()
        requests = {kind.__name__: count for kind, count in tuple(tally.requests.items())}
        refused = dict.fromkeys(REFUSALS, 0)
        refused |= {errno.errorcode.get(c, str(c)): n for c, n in tuple(tally.refused.items())}
        closed = dict.fromkeys(OFFENCES, 0) | dict(tuple(tally.closed.items()))
        for name, text, label, counts in (
            ("bftfs_requests", "Requests that were stepped, by message.", "message", requests),
            ("bftfs_refused", "Requests that were refused, by error.", "error", refused),
            ("bftfs_connections_closed", "Closed connections, by reason.", "reason", closed),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for which, count in sorted(counts.items()):
                family.add_metric([which], count)
            yield family
        for each in figures(tally, "bftfs_"):
            yield CounterMetricFamily(each.name, each.help, value=each.value)
        for name, text, value in (
            ("bftfs_store_bytes", "What the store takes on its disk.", health.store_bytes),
            ("bftfs_free_bytes", "Bytes that new versions can still take.", health.free_bytes),
            ("bftfs_objects", "Objects that the node hosts.", health.objects),
            ("bftfs_memory_bytes", "Resident memory of the process.", health.memory_bytes),
            ("bftfs_uptime_seconds", "Time since the start.", health.uptime_us / 1e6),
            ("bftfs_healthy", "1 if the node is healthy.", health.healthy),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        for each in self.gauges():
            yield GaugeMetricFamily(each.name, each.help, value=each.value)


class MetricsText:
    """All metrics in Prometheus' text format, counted when they are asked for."""

    def __init__(self, collector: NodeCollector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)

    def encoded(self) -> bytes:
        """The text, as the page `/metrics` has it."""
        return generate_latest(self._registry)

    def __call__(self) -> str:
        """The text."""
        return self.encoded().decode()


class Exposition(HTTPServer):
    """Serves the pages below, one request after the other, in a thread of its own.

    `listener` listens already, at an address of either family.
    """

    def __init__(
        self,
        listener: socket.socket,
        collector: NodeCollector,
        *,
        is_whole: Callable[[], bool],
    ) -> None:
        """`is_whole` is false while the node serves nothing yet, or rebuilds what it has lost."""
        BaseServer.__init__(self, listener.getsockname(), _Handler)
        listener.setblocking(True)
        self.socket = listener
        self._health = collector.health
        self._is_whole = is_whole
        self._call: Callable[[Callable[[], None], float], None]
        self._metrics = MetricsText(collector)

    def start(self, call: Callable[[Callable[[], None], float], None]) -> None:
        """Serve from now on; `call` runs a function in the node's loop."""
        self._call = call
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    def _serve(self) -> None:
        while self.fileno() >= 0:
            self.handle_request()  # sleeps until there is one; `serve_forever` wakes twice a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Go on with the next request: this one's sender has gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def page(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and content of what is at `path`."""
        if path == "/metrics":
            return 200, CONTENT_TYPE_LATEST, self._metrics.encoded()
        if path == "/health":
            health = self._health()
            facts = {name: getattr(health, name) for name in health.__struct_fields__}
            facts["background"] = {figure.name: figure.value for figure in health.background}
            status = 200 if health.healthy else 503
            return status, "application/json", json.dumps(facts, default=_in_json).encode() + b"\n"
        if path == "/live":
            try:
                self._call(lambda: None, LIVE_PATIENCE_S)
            except TimeoutError:
                return 503, _PLAIN, b"the node's loop does not turn\n"
            return 200, _PLAIN, b"the node's loop turns\n"
        if path == "/ready":
            if self._is_whole() and self._health().healthy:
                return 200, _PLAIN, b"the node serves all that it should have\n"
            return 503, _PLAIN, b"not yet, or not healthy: see /health\n"
        return 404, _PLAIN, b"there are /metrics, /health, /live and /ready\n"


class _Handler(BaseHTTPRequestHandler):
    timeout = ASKING_PATIENCE_S
    server: Exposition

    def do_GET(self) -> None:
        status, kind, content = self.server.page(self.path)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def _in_json(value: Any) -> Any:
    """What a report has that JSON lacks: bytes, in hexadecimal digits, and structures."""
    if isinstance(value, bytes):
        return value.hex()
    return {name: getattr(value, name) for name in value.__struct_fields__}


def resident_bytes() -> int:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


REBUILDING = (
    "it has forgotten something (its store was lost, or is an older copy, or its machine failed "
    "before all was synced), and compares everything with the other nodes: until then it counts as "
    "one of those that the cluster tolerates"
)
MADE_DO = (
    "more nodes than the cluster tolerates have forgotten something at the same time: what too few "
    "others still knew of the last moments is lost"
)


@dataclass(slots=True, kw_only=True)
class Health:
    """Answers `HealthRequest`, and makes the page `/health`: is anything degraded, and why."""

    disk_bytes: Callable[[], int]  # what the store takes on its disk
    links: Links
    room: Room
    tally: LoopTally
    recovery: Recovery
    membership: LiveMembership
    own_clock: OwnClock
    gauges: Callable[[], Iterable[Figure]]
    ahead: Callable[[], tuple[ObjectId, ...]]
    started_us: int = field(default_factory=clock.monotonic_us)

    def reply(self) -> HealthReply:
        """The state of the node now."""
        reasons = self._reasons()
        return HealthReply(
            pid=os.getpid(),
            uptime_us=clock.monotonic_us() - self.started_us,
            healthy=not reasons,
            reasons=(*reasons, *self._remarks()),
            store_bytes=self.disk_bytes(),
            used_bytes=self.room.live_bytes,
            free_bytes=self.room.free_bytes,
            objects=self.room.objects,
            requests=sum(self.tally.requests.values()),
            memory_bytes=resident_bytes(),
            background=tuple(
                HealthFigure(gauge.name, float(gauge.value)) for gauge in self.gauges()
            ),
            description_serial=self.membership.latest.serial,
            description_digest=self.membership.latest.digest,
            other_descriptions=self.membership.others.digests,
            let_go=tuple(
                Decision(each.before_s, each.signed_s, each.number, each.client, each.since_s)
                for each in self.membership.latest.let_go[-DECISIONS_TOLD:]
            ),
            ahead=self.ahead(),
        )

    def step(
        self,
        view: StorageView,
        sender: Sender,
        message: Any,
        body: Body,
        now_us: int,
    ) -> Ready:
        """Serve a `HealthRequest`."""
        self.room.measure()
        return Ready(self.reply())

    def _reasons(self) -> tuple[str, ...]:
        reasons = []
        if self.room.full:
            reasons.append(f"writes are refused: {self.room.why_full}")
        if self.tally.faults:
            reasons.append(f"{self.tally.faults} requests met a fault in the node; see its log")
        membership = self.membership
        reasons += (self.own_clock.reason, membership.outdated, membership.unused)
        reasons += (membership.contradicted, membership.narrowed, membership.unstored)
        return tuple(reason[:512] for reason in reasons if reason)

    def _remarks(self) -> tuple[str, ...]:
        """Remarks that do not mean that this node is degraded.

        A peer that was down when it was dialled last may be up again, and its failure is not a
        failure of this node.
        """
        return (
            *((REBUILDING,) if self.recovery.rebuilding else ()),
            *((self.recovery.waits_for,) if self.recovery.waits_for else ()),
            *((self._made_do,) if self.recovery.makes_do else ()),
            *((RESTART,) if self.membership.is_partial else ()),
            *(
                f"node {node} could not be reached: {why}"[:512]
                for node, why in self.links.unreachable()
            ),
        )

    @property
    def _made_do(self) -> str:
        gave_way = self.recovery.gave_way
        return f"{MADE_DO} (here: of {gave_way} objects)" if gave_way else MADE_DO
