"""The pages of a small file system in virtual time, with an honest user and an intruder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from bftfs.conversation import Conversation
from bftfs.errors import UsageError
from bftfs.filesystem.time_names import format_time_name, parse_time_name
from bftfs.identifiers import ClientId
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.ui.app import ClusterShown, create_app
from bftfs.ui.gate import Gate
from bftfs.ui.health import HealthRecord
from bftfs.ui.paths import path_text
from bftfs.ui.source import Result
from tests.unit.restoration.conftest import Stage
from tests.unit.ui import reports

PORT = 8000


class StageSource:
    """What pages need, of the stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._clients = {"honest": stage.honest, "intruder": stage.intruder}
        self.view: Viewpoint = stage.view()

    @property
    def clients(self) -> list[str]:
        return list(self._clients)

    def perform(self, conversation: Conversation[Result]) -> Result:
        result: Result = self._stage.honest.run(conversation)
        return result

    def time(self, text: str) -> int:
        time_us = parse_time_name(text)
        if time_us is None:
            raise UsageError(f"{text}: is no time")
        return time_us

    def client_name(self, client: ClientId) -> str:
        return next(name for name, user in self._clients.items() if user.host.client == client)

    def client_called(self, text: str) -> ClientId:
        if text not in self._clients:
            raise UsageError(f"{text}: no client is called so")
        return self._clients[text].host.client

    def path(self, names: tuple[bytes, ...]) -> str:
        return f"/mnt/{path_text(names)}".rstrip("/")

    def undo_command(self, names: tuple[bytes, ...], client: str, since_us: int) -> str:
        return f"bftfs undo '{self.path(names)}' --client '{client}' --since {since_us}"

    def inspected(self, names: tuple[bytes, ...], first: int, count: int) -> dict[str, Any]:
        self.perform(self.view.at(None).attributes(self._stage.honest.find(""), self.view.who))
        return reports.inspected(first, count)


class Browser:
    """A browser that has been given the token."""

    def __init__(self, client: FlaskClient, gate: Gate, record: HealthRecord) -> None:
        self._client = client
        self.gate = gate
        self.record = record
        self.get("enter", token=gate.token)

    def get(self, address: str = "", **arguments: str) -> TestResponse:
        """The answer for a page."""
        return self.send("GET", address, **arguments)

    def send(
        self, method: str, address: str = "", *, host: str = f"127.0.0.1:{PORT}", **arguments: str
    ) -> TestResponse:
        return self._client.open(
            f"/{self.gate.place}/{address}",
            method=method,
            query_string=arguments or None,
            headers={"Host": host},
        )

    def page(self, address: str = "", *, code: int = 200, **arguments: str) -> str:
        """The text of a page."""
        answer = self.get(address, **arguments)
        assert answer.status_code == code, answer.text
        return answer.text


class Shop:
    """Makes browsers of the stage's pages."""

    def __init__(self, stage: Stage) -> None:
        self.gate = Gate.drawn(PORT)
        self.record = HealthRecord(reports.status, lambda: stage.now_us)

        @contextmanager
        def opened() -> Iterator[StageSource]:
            yield StageSource(stage)

        self.app = create_app(opened, self.record, self.gate, ClusterShown("/mnt", "honest"))
        self.app.testing = True

    def stranger(self) -> FlaskClient:
        """A browser that was given nothing."""
        return self.app.test_client()


@pytest.fixture
def stage() -> Stage:
    """A file `a` of two versions, a directory `d`, and a file `d/c` by the intruder."""
    stage = Stage()
    stage.honest.write("a", "flour\nyeast\n")
    stage.honest.mkdir("d")
    stage.run_for(1_000_000)
    stage.begin()
    stage.honest.write("a", "flour\nyeast 7\nsalt\n")
    stage.intruder.write("d/c", "ransom\n")
    return stage


@pytest.fixture
def shop(stage: Stage) -> Shop:
    return Shop(stage)


@pytest.fixture
def browser(shop: Shop) -> Browser:
    return Browser(shop.stranger(), shop.gate, shop.record)


def at(time_us: int) -> str:
    """A time, as addresses have it."""
    return format_time_name(time_us)
