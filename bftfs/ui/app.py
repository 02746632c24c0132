"""The pages by address: each is gathered by a module of its own, and written by a template."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any, Final

from flask import Blueprint, Flask, Response, abort, g, make_response, render_template, request
from flask import typing as flask_typing
from markupsafe import Markup, escape
from werkzeug.exceptions import HTTPException

from bftfs.errors import BftfsError, FileSystemError, OperationFailed, UsageError
from bftfs.filesystem.file_history import Moments
from bftfs.filesystem.time_names import format_time_name, local
from bftfs.printable import printable
from bftfs.restoration.telling import file_kind, said
from bftfs.ui import differences, fragments, health, tree
from bftfs.ui.auditing import ROWS_SHOWN, audit_shown
from bftfs.ui.gate import COOKIE, HEADERS, Gate
from bftfs.ui.paths import Names, find, names_in, path_text
from bftfs.ui.source import OpenSource, Source

_LINE_SHOWN: Final = 1000  # characters of a line
_NOT_FOUND: Final = (errno.ENOENT, errno.ESTALE, errno.ENOTDIR)
_NOT_PERMITTED: Final = (errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class ClusterShown:
    """Whose cluster the pages show, in words."""

    what: str  # the mount point, or the data directory
    client: str


class Pages:
    """The pages of one cluster."""

    def __init__(self, opened: OpenSource, record: health.HealthRecord) -> None:
        self._opened = opened
        self._record = record
        self._auditing = Lock()  # one at a time: an audit reads every directory below a path

    def enter(self) -> str:
        """The page behind the printed address: it leads on, now that the browser has the cookie.

        A redirection would not do: coming from somewhere else, it would not bring the cookie.
        """
        return render_template("enter.html")

    def files(self) -> flask_typing.ResponseReturnValue:
        """A directory, or a file with its versions, as it was at a time."""
        names = names_in(_argument("path"))
        with self._opened() as source:
            time_us = _time(source, "at")
            try:
                found = source.perform(find(source.view, names, time_us))
            except FileSystemError as refusal:
                if refusal.code not in _NOT_FOUND or not names:
                    raise
                return self._nothing(source, _common(names, time_us))
            common = _common(names, time_us) | {"found": found}
            if found.attributes.is_directory:
                return self._directory(source, common)
            return self._file(source, common)

    def _directory(self, source: Source, common: dict[str, Any]) -> str:
        view, found, time_us = source.view, common["found"], common["time_us"]
        moments = source.perform(tree.moments_below(view, found.identifier))
        directory = source.perform(
            tree.directory_shown(view, found, time_us, number=_number("page"))
        )
        return render_template(
            "directory.html",
            **common,
            directory=directory,
            times=tree.times_shown(moments, time_us),
            client_name=source.client_name,
            change=source.perform(tree.last_change(view, found.identifier, time_us)),
        )

    def _nothing(self, source: Source, common: dict[str, Any]) -> flask_typing.ResponseReturnValue:
        """A path at which nothing is at that time; with what its directory knows of the name."""
        view, names, time_us = source.view, common["names"], common["time_us"]
        above = source.perform(find(view, names[:-1], time_us))
        name = source.perform(tree.name_shown(view, above.identifier, names[-1]))
        moments = Moments([each.time_us for each in name.changes])
        page = render_template(
            "nothing.html",
            **common,
            name=name,
            times=tree.times_shown(moments, time_us),
            client_name=source.client_name,
        )
        return page, 404

    def _file(self, source: Source, common: dict[str, Any]) -> str:
        view, found, time_us = source.view, common["found"], common["time_us"]
        until_us = _time(source, "until")
        versions = source.perform(tree.versions_shown(view, found.identifier, until_us))
        names = common["names"]
        above = source.perform(find(view, names[:-1], time_us))
        name = source.perform(tree.name_shown(view, above.identifier, names[-1]))
        kind = file_kind(found.attributes)
        text, why_none = None, "They are not text."
        if kind in ("file", "symlink"):
            try:
                contents = source.perform(tree.beginning(view, found, time_us, tree.TEXT_SHOWN))
            except (FileSystemError, OperationFailed) as failure:
                why_none = f"They cannot be read: {printable(str(failure))}."
            else:
                is_whole = len(contents) >= found.attributes.size
                text = tree.text_in(contents, is_whole=is_whole)
        return render_template(
            "file.html",
            **common,
            kind=kind,
            versions=versions,
            name=name,
            times=tree.times_shown(versions.moments(name), time_us),
            lines=None if text is None else text.removesuffix("\n").split("\n") if text else [],
            text_shown=tree.TEXT_SHOWN,
            why_none=why_none,
            client_name=source.client_name,
            change=source.perform(tree.last_change(view, found.identifier, time_us)),
        )

    def diff(self) -> str:
        """How the text at a path differs between two times."""
        names = names_in(_argument("path"))
        with self._opened() as source:
            old_us, new_us = _time(source, "old"), _time(source, "new")
            if old_us is None:
                raise UsageError("Say which earlier time is to be compared, such as 1 hour ago.")
            before, after = (
                source.perform(differences.side(source.view, names, each))
                for each in (old_us, new_us)
            )
        comparing = None
        if before.text is not None and after.text is not None:
            comparing = differences.compared(before.text, after.text)
        return render_template(
            "diff.html",
            **_common(names, new_us),
            old_us=old_us,
            before=before,
            after=after,
            comparing=comparing,
        )

    def map(self) -> str:
        """Which node has what of an object or file."""
        names = names_in(_argument("path"))
        first = max(0, _number("first", 0))
        with self._opened() as source:
            report = source.inspected(names, first, fragments.BLOCKS_SHOWN)
        return render_template(
            "map.html",
            **_common(names, None),
            report=report,
            map=fragments.fragment_map(report),
            first=first,
            shown=fragments.BLOCKS_SHOWN,
        )

    def health(self) -> str:
        """How the nodes are, and were."""
        samples = self._record.samples
        return render_template(
            "health.html",
            names=(),
            report=self._record.latest,
            last=samples[-1] if samples else None,
            periods=health.periods(samples)[: -health.PERIODS_SHOWN - 1 : -1],
            picture=health.picture(samples),
            state_of_node=health.state_of_node,
            every_s=health.EVERY_S,
        )

    def audit(self) -> str:
        """What a client has changed, and what an undo would do."""
        names = names_in(_argument("path"))
        client, since = _argument("client"), _argument("since")
        with self._opened() as source:
            audit, since_us = None, None
            if client or since:
                if not client or not since:
                    raise UsageError("Say both: which client, and since when.")
                since_us = source.time(since)
                with self._one_at_a_time():
                    audit = audit_shown(source, names, client, since_us)
            return render_template(
                "audit.html",
                **_common(names, None),
                clients=source.clients,
                client=client,
                since=since,
                since_us=since_us,
                audit=audit,
                most=ROWS_SHOWN,
            )

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._auditing.acquire(blocking=False):
            raise UsageError("Another audit is still under way: wait until its page is there.")
        try:
            yield
        finally:
            self._auditing.release()


def create_app(
    opened: OpenSource, record: health.HealthRecord, gate: Gate, shown: ClusterShown
) -> Flask:
    """The application: `opened` gives each page its own connection to the nodes."""
    app = Flask("bftfs.ui", static_folder=None)
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(name=_name, when=_when, iso=_iso, line=_line, said=said)
    app.jinja_env.globals.update(path_text=path_text, shown_cluster=shown)
    here = Blueprint("ui", __name__, url_prefix=f"/{gate.place}", static_folder="static")
    pages = Pages(opened, record)
    for address, made in (
        ("/enter", pages.enter),
        ("/", pages.files),
        ("/diff", pages.diff),
        ("/map", pages.map),
        ("/health", pages.health),
        ("/audit", pages.audit),
    ):
        here.add_url_rule(
            address, made.__name__, made, methods=["GET"], provide_automatic_options=False
        )
    app.register_blueprint(here)

    @app.before_request
    def check() -> None:
        """Refuse each request that the gate does not admit."""
        if not gate.is_ours(request.host):
            abort(403, f"Only for 127.0.0.1:{gate.port}, and not for another name of it.")
        if request.endpoint == "ui.enter" and gate.has_token(_argument("token")):
            return
        if not gate.admits(request.cookies.get(COOKIE, "")):
            abort(403, "Open the address that `bftfs ui` has printed: it has the token in it.")
        g.admitted = True

    @app.after_request
    def protect(response: Response) -> Response:
        """Let nobody else show, keep or run anything of it."""
        response.headers.update(HEADERS)
        if request.endpoint == "ui.enter" and response.status_code == 200:
            response.set_cookie(
                COOKIE, gate.cookie, path=f"/{gate.place}/", httponly=True, samesite="Strict"
            )
        return response

    app.register_error_handler(HTTPException, _problem_of_request)
    app.register_error_handler(BftfsError, _problem_of_ours)
    return app


# --- arguments ----------------------------------------------------------------------------------


def _argument(name: str) -> str:
    return request.args.get(name, "").strip()


def _number(name: str, default: int = 1) -> int:
    text = _argument(name)
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UsageError(f"{name}={text[:20]}: give a number.")
    return max(default, int(text))


def _time(source: Source, name: str) -> int | None:
    """The time in an argument; None (now) if there is none."""
    text = _argument(name)
    return source.time(text) if text and text != "now" else None


def _common(names: Names, time_us: int | None) -> dict[str, Any]:
    """What all pages about a path need."""
    return {"names": names, "time_us": time_us, "at": "" if time_us is None else _iso(time_us)}


# --- filters ------------------------------------------------------------------------------------


def _name(name: str | bytes) -> Markup:
    """A name, on one line, harmless, and in its own direction of writing."""
    text = os.fsdecode(name) if isinstance(name, bytes) else name
    return Markup("<bdi>{}</bdi>").format(printable(text))


def _iso(time_us: int) -> str:
    return format_time_name(time_us)


def _when(time: int | str | None) -> Markup:
    """A time for people, to the millisecond, or `now`; of one in text, what is in it."""
    if time is None:
        return Markup("now")
    moment = local(time) if isinstance(time, int) else datetime.fromisoformat(time)
    text = moment.isoformat(sep=" ", timespec="milliseconds")[: len("2026-11-21 10:02:03.123")]
    return Markup('<time datetime="{}">{}</time>').format(moment.isoformat(), text)


def _line(text: str) -> Markup:
    """A line of a text, with its tabs, harmless; with a note if it has no line break, or is cut."""
    kept = text.removesuffix("\n")
    shown = "\t".join(map(printable, kept[:_LINE_SHOWN].split("\t")))
    notes = []
    if len(kept) > _LINE_SHOWN:
        notes.append(f"{len(kept) - _LINE_SHOWN:,} more characters")
    if not text.endswith("\n"):
        notes.append("no line break at the end")
    note = Markup(' <span class="note">({})</span>').format("; ".join(notes)) if notes else ""
    return escape(shown) + note


# --- problems -----------------------------------------------------------------------------------


def _problem(code: int, why: str) -> Response:
    admitted = g.get("admitted", False)
    page = render_template("problem.html", why=printable(why), admitted=admitted, names=())
    return make_response(page, code)


def _problem_of_request(error: HTTPException) -> flask_typing.ResponseReturnValue:
    code = error.code or 500
    why = {
        404: "There is no such page.",
        405: "Nothing can be changed here: only GET and HEAD are answered.",
        500: "This page has failed, which is a mistake of bftfs; the terminal shows more.",
    }.get(code, error.description or error.name)
    return _problem(code, why)


def _problem_of_ours(error: BftfsError) -> flask_typing.ResponseReturnValue:
    if isinstance(error, UsageError):
        return _problem(400, str(error))
    if not isinstance(error, FileSystemError):
        return _problem(503, f"{error}. The page on health shows which nodes answer.")
    if error.code in _NOT_FOUND:
        at = _argument("at")
        when = f"at {at}" if at else "now"
        if not _argument("path"):
            return _problem(404, f"There was no file system {when}: that is before it was made.")
        return _problem(404, f"Nothing is at this path {when}; its directory shows other times.")
    if error.code in _NOT_PERMITTED:
        return _problem(403, "You may not read this: `bftfs ui` asks as the user who runs it.")
    return _problem(503, f"This cannot be read: {os.strerror(error.code)}.")
