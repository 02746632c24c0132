"""`bftfs ui`: pages in a browser on this machine; see `bftfs.ui`."""

from __future__ import annotations

import errno
import logging
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bftfs.cli import inspect, restore, status
from bftfs.cli.command_session import CommandSession, client_of_mount, session_of
from bftfs.cli.options import data_option
from bftfs.cli.processes import mounts_of
from bftfs.conversation import Conversation
from bftfs.data_directory import DEFAULT_CLIENT, DataDirectory
from bftfs.errors import UsageError
from bftfs.filesystem.time_names import format_time_name
from bftfs.identifiers import ClientId
from bftfs.known_clients import labels_of
from bftfs.printable import as_word, printable
from bftfs.restoration.viewpoint import Viewpoint
from bftfs.runtime import clock
from bftfs.ui.source import Result
from mount.mountpoint import containing

if TYPE_CHECKING:
    from flask import Flask

_THREADS: Final = 4  # pages that are made at the same time
_HEADER_BYTES: Final = 64 << 10


class SessionSource:
    """A command's session, as pages use it; see `bftfs.ui.source.Source`."""

    def __init__(self, session: CommandSession, mountpoint: Path | None) -> None:
        self._session = session
        self._mountpoint = mountpoint

    @property
    def view(self) -> Viewpoint:
        """The user's view of the file system."""
        return self._session.view

    @property
    def clients(self) -> list[str]:
        """The names of the cluster's clients, with those of revoked ones."""
        return list(labels_of(self._session.description).values())

    def perform(self, conversation: Conversation[Result]) -> Result:
        """The result of a conversation with the nodes."""
        return self._session.perform(conversation)

    def time(self, text: str) -> int:
        """The time that `text` says, or the snapshot of that name."""
        return self._session.time(text)

    def client_name(self, client: ClientId) -> str:
        """The name of a client, or the beginning of its id."""
        return self._session.client_name(client)

    def client_called(self, text: str) -> ClientId:
        """The client that is called so."""
        return restore.client_called(self._session, text)

    def _path(self, names: tuple[bytes, ...]) -> str:
        top = Path("/") if self._mountpoint is None else self._mountpoint
        return str(top.joinpath(*map(os.fsdecode, names)))

    def path(self, names: tuple[bytes, ...]) -> str:
        """The path in the mount, harmless to print."""
        return printable(self._path(names))

    def undo_command(self, names: tuple[bytes, ...], client: str, since_us: int) -> str:
        """The command that takes back what a client has changed."""
        where = "MOUNTPOINT" if self._mountpoint is None else ""
        path, label = as_word(self._path(names)), as_word(client)
        return f"bftfs undo {where}{path} --client {label} --since {format_time_name(since_us)}"

    def inspected(self, names: tuple[bytes, ...], first: int, count: int) -> dict[str, Any]:
        """The report of `bftfs inspect`, with sentences."""
        session = self._session
        path = session.mounted.path.joinpath(*map(os.fsdecode, names))
        located = session.locate_at(path, None)
        report = inspect.inspected(session, located, (first, first + count - 1))
        return report | {"sentences": list(inspect.sentences(report))}


@click.command()
@data_option
@click.option("--client", default=None, help="As this client. [default: that of the mount]")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="[default: a free one]")
@click.option("--open", "opens", is_flag=True, help="Open the page in your browser.")
def ui(directory: DataDirectory, client: str | None, port: int, opens: bool) -> None:
    """Show files, their past and the nodes in a browser on this machine, until Ctrl-C.

    Prints the address of the pages, which has a token: anybody who has it sees what you may read.
    The pages change nothing, and only this machine can reach them.

    Example: bftfs ui --data /srv/files --open
    """
    try:
        from bftfs.ui.app import ClusterShown, create_app
        from bftfs.ui.gate import Gate
        from bftfs.ui.health import HealthRecord
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the pages need the Python package {error.name}, which is not installed: "
            "`pip install 'bftfs[ui]'` brings it"
        ) from None
    client, mountpoint = _whose(directory, client)

    @contextmanager
    def opened() -> Iterator[SessionSource]:
        with session_of(directory.path, client=client, read_only=True) as session:
            yield SessionSource(session, mountpoint)

    with opened():
        pass  # a missing key is told here, and not on a page
    record = HealthRecord(lambda: _report(directory, client), clock.now_us)
    listening = _listen(port)
    gate = Gate.drawn(listening.getsockname()[1])
    shown = ClusterShown(str(mountpoint or directory.path), client)
    app = create_app(opened, record, gate, shown)
    stop = threading.Event()
    threading.Thread(target=record.run, args=(stop,), daemon=True).start()
    click.echo(f"{gate.address}\nFor you alone: the address has a token. Ctrl-C ends it.")
    with tempfile.TemporaryDirectory(prefix="bftfs-ui-") as place:
        if opens:
            _open(gate.address, Path(place))
        try:
            _serve(app, listening)
        finally:
            stop.set()
    raise KeyboardInterrupt  # the server ends with nothing else, and has taken it for itself


def _whose(directory: DataDirectory, client: str | None) -> tuple[str, Path | None]:
    """The client that asks nodes, and the mount point for commands, as of the mount we are in."""
    here = None
    with suppress(FileNotFoundError):  # the current directory may have been removed
        here = containing(Path.cwd())
    if here is not None and DataDirectory(Path(here.source)) == directory:
        return client or client_of_mount(here, directory), here.path
    return client or DEFAULT_CLIENT, next(iter(mounts_of(directory)), None)


def _report(directory: DataDirectory, client: str) -> dict[str, Any]:
    report = status.report_of(directory, client=client)
    return report | {"sentences": status.sentences(report)}


def _listen(port: int) -> socket.socket:
    """A socket that only this machine can reach."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()
    except OSError as error:
        listening.close()
        why = {
            errno.EADDRINUSE: "another program has it",
            errno.EACCES: "only root may use it",
        }.get(error.errno or 0, error.strerror)
        raise UsageError(
            f"port {port}: {why}; choose another one with --port, or leave it out for a free one",
            exit_code=1,
        ) from None
    return listening


def _open(address: str, place: Path) -> None:
    """Open the address in the user's browser.

    By way of a file that only the user can read: everybody sees a process's command line.
    """
    page = place / "open.html"
    page.touch(mode=0o600)
    page.write_text(f'<meta http-equiv="refresh" content="0; url={escape(address)}">')
    if not webbrowser.open(page.as_uri()):
        click.echo("bftfs: found no browser to open; open the address yourself", err=True)


def _serve(app: Flask, listening: socket.socket) -> None:
    """Answer requests until Ctrl-C."""
    from waitress.server import create_server

    logging.getLogger("waitress").setLevel(logging.ERROR)  # not how many requests wait
    server = create_server(
        app,
        sockets=[listening],
        threads=_THREADS,
        ident=None,
        max_request_header_size=_HEADER_BYTES,
        max_request_body_size=0,
        connection_limit=64,
        channel_timeout=30,
    )
    server.run()
