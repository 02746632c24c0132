"""`bftfs ui` on a real mount, in a real browser: by mouse, by keyboard, and without scripts.

Chromium is driven by playwright. axe-core looks at every page for what would keep people from using
it: names that a screen reader needs, contrast, structure.
"""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from axe_playwright_python import sync_playwright as axe
from playwright import sync_api as playwright

from bftfs.cli import ui
from tests.end_to_end.cluster import COMMAND_TIMEOUT_S, Cluster, bftfs
from tests.end_to_end.expectations import eventually, program
from tests.end_to_end.test_history import now
from tests.end_to_end.watchdog import PROJECT

pytestmark = pytest.mark.usefixtures("guarded")

HOSTILE = "x\x1b[31m<script>document.title='taken'</script>".replace("/", "|")
CREATED, REWRITTEN = "flour\nyeast\n", "flour\nyeast 7\nsalt\n"
PATIENCE_MS = 60_000  # of the browser, on a busy machine
playwright.expect.set_options(timeout=PATIENCE_MS)


class Told(NamedTuple):
    """What the tests know of the tree that the pages show."""

    address: str
    port: int
    path: str  # of the directory, from the root of the file system
    before_theft: str  # a time


class Server:
    """`bftfs ui`, and its address."""

    def __init__(self, where: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bftfs", "ui"],
            cwd=where,
            env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.stop()
        self.port = int(re.findall(r":(\d+)/", self.address)[0])

    def stop(self) -> tuple[int, str]:
        """Press Ctrl-C; the exit code, and what it said as an error."""
        self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=COMMAND_TIMEOUT_S)
        return self.process.returncode, said.strip()


@pytest.fixture(scope="module")
def told(cluster: Cluster, playground: Path) -> Iterator[Told]:
    """A tree with a past, which a client called thief has got into; and `bftfs ui`."""
    team = cluster.mountpoint / "0-pages"  # a name on the first page, whatever others are there
    (team / "sub").mkdir(parents=True)
    (team / "bread.txt").write_text(CREATED)
    (team / HOSTILE).write_text("inside\n")
    bftfs("cluster", "add-client", "--data", cluster.data, "--any-uid", "thief")
    before_theft = now()
    (team / "bread.txt").write_text(REWRITTEN)
    with cluster.mount(playground / "thief", "client=thief") as mount:
        (mount / "0-pages" / "ransom.txt").write_text("pay\n")
    before = bftfs("log", "--json", team)
    server = Server(team)
    try:
        yield Told(server.address, server.port, "0-pages", before_theft)
    finally:
        assert server.stop() == (130, "bftfs: interrupted")
    assert bftfs("log", "--json", team) == before, "pages change nothing"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program("chromium-headless-shell", "chromium"),
            # A name of somebody else's that stands for this machine; and root has no sandbox.
            args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
            timeout=PATIENCE_MS,
        )
        yield browser
        browser.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(chromium: Any, told: Told) -> Iterator[Open]:
    """Opens the printed address in a browser of its own; whose console must stay empty."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def opening(**options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(told.address)
        page.wait_for_selector("#shown")
        return page

    yield opening
    for context in contexts:
        context.close()
    # A page about a path at which nothing is has the status 404, which the browser notes.
    assert [each for each in complaints if "status of 404" not in each] == []


def heading(page: Any) -> str:
    text: str = page.locator("#shown-title").inner_text()
    return text


def field(page: Any, label: str) -> Any:
    """What a user writes into, by its label. One with a list of proposals is a combobox."""
    return page.locator("form input:visible").and_(page.get_by_label(label, exact=True))


def go(page: Any, told: Told, address: str) -> None:
    """Open another page of the same server."""
    place = re.findall(r"^(http://[^/]*/[^/]*/)", told.address)[0]
    page.goto(place + address)


def pages(told: Told) -> list[str]:
    path = f"path={told.path}"
    since = told.before_theft.replace("+", "%2B")
    return [
        "",
        f"?{path}&at={since}",
        f"?{path}/bread.txt",
        f"?{path}/gone",
        f"diff?{path}/bread.txt&old={since}",
        f"map?{path}/bread.txt",
        "health",
        f"audit?{path}&client=thief&since={since}",
    ]


def awaited(page: Any, pattern: str) -> None:
    """Wait until the heading says so, and scripts have done their part."""
    playwright.expect(page.locator("#shown-title")).to_have_text(re.compile(pattern))
    page.wait_for_load_state()


# --- by mouse -------------------------------------------------------------------------------


def test_by_mouse(opened: Open, told: Told) -> None:
    page = opened()
    assert heading(page) == "/ now"
    assert "token" not in page.url
    page.get_by_role("link", name="0-pages/").click()
    awaited(page, "^/0-pages now$")
    table = page.get_by_role("region", name="Table of names")
    assert "thief, uid 0" in table.get_by_role("row", name="ransom.txt").inner_text()
    assert HOSTILE.replace("\x1b", r"\x1b") in table.inner_text()

    # The slider: to the left, where nothing had been made yet.
    slider = page.get_by_role("slider", name="Time of change")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + 2, box["y"] + box["height"] / 2)
    awaited(page, "^/0-pages at ")
    playwright.expect(page.locator("#shown")).not_to_contain_text("ransom.txt")
    page.wait_for_url(re.compile("at="))
    assert heading(page) in page.locator("#said").inner_text()
    page.get_by_role("link", name="Now", exact=True).click()
    awaited(page, "^/0-pages now$")

    page.get_by_role("link", name="bread.txt").click()
    awaited(page, "bread.txt now$")
    assert page.get_by_role("region", name="Contents").inner_text().strip() == REWRITTEN.strip()
    page.get_by_role("link", name=re.compile("^What changed at")).first.click()
    awaited(page, "bread.txt, from ")
    assert "2 lines added, 1 removed" in page.locator("#shown").inner_text()
    page.get_by_role("link", name="Nodes and fragments").click()
    awaited(page, "bread.txt now$")
    cells = page.get_by_role("region", name="Table of blocks").locator("td.cell")
    assert cells.count() == 6
    page.get_by_role("link", name="Health").click()
    playwright.expect(page.locator("rect").first).to_be_visible()
    assert "quorums: " in page.locator("#shown").inner_text()


def test_an_audit_shows_what_an_undo_would_do(opened: Open, told: Told, cluster: Cluster) -> None:
    page = opened()
    page.get_by_role("link", name="Audit").click()
    field(page, "Path").fill(told.path)
    field(page, "Client").fill("thief")
    field(page, "Since").fill(told.before_theft)
    page.get_by_role("button", name="Show").click()
    awaited(page, "^thief below /0-pages since ")
    assert page.locator("#changes tbody tr").count() == 2
    ransom = cluster.mountpoint / told.path / "ransom.txt"
    assert f"remove {ransom}" in page.locator("#steps-of-undo").inner_text()
    command = page.locator("#shown code").last.inner_text()
    assert command.startswith(f"bftfs undo {ransom.parent} --client thief --since ")
    assert ransom.read_text() == "pay\n", "nothing was done"


# --- by keyboard ----------------------------------------------------------------------------


def focused(page: Any) -> dict[str, Any]:
    """The element that has the focus: its id, its text, and if that can be seen."""
    found: dict[str, Any] = page.evaluate(
        """() => {
            const each = document.activeElement, style = getComputedStyle(each);
            return {id: each.id, text: each.textContent.trim().slice(0, 80),
                    visible: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2};
        }"""
    )
    return found


def tab_to(page: Any, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Press Tab until the focus is where it is wanted; it must be seen all the way."""
    for _ in range(60):
        page.keyboard.press("Tab")
        here = focused(page)
        assert here["visible"], here
        if wanted(here):
            return
    raise AssertionError("Tab does not lead there")


def test_by_keyboard(opened: Open) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert focused(page)["text"] == "Skip to the contents"
    page.keyboard.press("Enter")
    assert focused(page)["id"] == "main"
    tab_to(page, lambda here: here["text"] == "0-pages/")
    page.keyboard.press("Enter")
    awaited(page, "^/0-pages now$")
    tab_to(page, lambda here: here["id"] == "slider")
    slider = page.locator("#slider")
    assert slider.get_attribute("aria-valuetext") == "now"
    page.keyboard.press("ArrowLeft")
    awaited(page, "^/0-pages at ")
    assert re.match(r"\d{4}-", slider.get_attribute("aria-valuetext"))
    assert focused(page)["id"] == "slider", "the focus stays"
    playwright.expect(page.locator("#said")).to_contain_text("/0-pages at ")
    page.keyboard.press("Home")
    playwright.expect(page.locator("#shown")).not_to_contain_text("ransom.txt")
    page.keyboard.press("End")
    awaited(page, "^/0-pages now$")
    tab_to(page, lambda here: here["text"].endswith("times of change in and below this directory"))
    page.keyboard.press("Enter")
    tab_to(page, lambda here: bool(re.match(r"\d{4}-", here["text"])))
    page.keyboard.press("Enter")
    awaited(page, "^/0-pages at ")
    tab_to(page, lambda here: here["text"] == "Audit")
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask")
    tab_to(page, lambda here: here["id"] == "client")
    page.keyboard.type("thief")
    page.keyboard.press("Tab")
    page.keyboard.type("1 hour ago")
    page.keyboard.press("Enter")
    awaited(page, "^thief below /0-pages since ")


# --- without scripts ------------------------------------------------------------------------


def test_without_scripts(opened: Open, told: Told) -> None:
    page = opened(java_script_enabled=False)
    assert "token" not in page.url
    page.get_by_role("link", name="0-pages/").click()
    assert page.locator("#slider").count() == 0
    page.locator("#moments summary").click()
    page.locator("#moments li a").first.click()
    assert re.match("/0-pages at ", heading(page))
    assert "ransom.txt" not in page.locator("#shown").inner_text()
    page.get_by_role("link", name=re.compile("^Later")).click()
    field(page, "Time").fill("now")
    page.get_by_role("button", name="Show").click()
    assert heading(page) == "/0-pages now"
    field(page, "Time").fill(told.before_theft)
    field(page, "Time").press("Enter")
    page.get_by_role("link", name="bread.txt").click()
    assert page.get_by_role("region", name="Contents").inner_text().strip() == CREATED.strip()
    page.get_by_role("link", name="What has changed since then").click()
    assert "2 lines added, 1 removed" in page.locator("#shown").inner_text()

    def is_known() -> bool:
        go(page, told, "health")
        return "quorums: " in page.locator("#shown").inner_text()

    eventually(is_known, within_s=60, what="the first look at the nodes is over")
    go(page, told, f"audit?path={told.path}")
    field(page, "Client").fill("thief")
    field(page, "Since").fill("1 hour ago")
    page.get_by_role("button", name="Show").click()
    assert page.locator("#steps-of-undo li").count() >= 1


# --- for everybody --------------------------------------------------------------------------


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_nothing_keeps_people_from_using_a_page(opened: Open, told: Told, colours: str) -> None:
    page = opened(color_scheme=colours)
    for address in pages(told):
        go(page, told, address)
        found = axe.Axe().run(page).response["violations"]
        said = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]
        assert said == [], address


def test_narrow_windows_do_not_scroll_sideways(opened: Open, told: Told) -> None:
    page = opened()
    page.set_viewport_size({"width": 360, "height": 640})
    for address in pages(told):
        go(page, told, address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address


def test_a_browser_that_is_opened_gets_there(
    chromium: Any, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a page elsewhere: a strict cookie is not sent along with what that page leads to."""
    files: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda file: files.append(file) or True)
    ui._open(told.address, tmp_path)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(files[0])
    page.wait_for_selector("#shown", timeout=PATIENCE_MS)
    assert "token" not in page.url
    context.close()


# --- for nobody else ------------------------------------------------------------------------


class Overheard(BaseHTTPRequestHandler):
    """A server of somebody else on this machine, which remembers what it is sent."""

    heard: list[str] = []  # noqa: RUF012 (http.server makes an instance per request)

    def do_GET(self) -> None:
        self.heard.append(self.headers.get("Cookie", ""))
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other</title><h1>other</h1>")

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_other_pages_in_the_same_browser_get_nothing(chromium: Any, told: Told) -> None:
    context = chromium.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(told.address)
    page.wait_for_selector("#shown")
    inside = page.url
    server = HTTPServer(("127.0.0.1", 0), Overheard)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        other = f"http://127.0.0.1:{server.server_port}/"
        page.goto(other)
        assert Overheard.heard[0] == "", "browsers give cookies to all ports of a host"
        got = page.evaluate(
            """async (address) => {
                try {
                    return await (await fetch(address, {credentials: "include"})).text();
                } catch (error) { return "nothing"; }
            }""",
            inside,
        )
        assert got == "nothing"
        page.evaluate(
            """(address) => new Promise((resolve) => {
                const frame = document.createElement("iframe");
                frame.onload = resolve;
                frame.src = address;
                document.body.append(frame);
            })""",
            inside,
        )
        shown = [frame.url for frame in page.frames]
        assert shown == [other, "chrome-error://chromewebdata/"], "others cannot frame it"
        # Another name for this machine, as after DNS rebinding.
        page.goto(inside.replace("127.0.0.1", "evil.example"))
        assert "not for another name" in page.locator("main").inner_text()
    finally:
        server.shutdown()
        server.server_close()
        context.close()


def test_it_ends_with_ctrl_c_and_leaves_nothing(cluster: Cluster) -> None:
    server = Server(cluster.mountpoint)
    with socket.create_connection(("127.0.0.1", server.port), timeout=COMMAND_TIMEOUT_S) as sent:
        sent.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert sent.recv(1000).split(b" ")[1] in (b"403", b"405", b"413")
    begun = time.monotonic()
    assert server.stop() == (130, "bftfs: interrupted")
    assert time.monotonic() - begun < COMMAND_TIMEOUT_S
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=10)
