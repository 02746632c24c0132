"""bftfs.ui: what the pages show of a small file system; whatever its names and contents are."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest

from bftfs.errors import QuorumUnavailable
from bftfs.ui import app, differences, tree
from bftfs.ui.paths import names_in, path_text
from tests.unit.restoration.conftest import Stage
from tests.unit.ui.conftest import Browser, at

HOSTILE = "x\n\x1b[2J<script>alert(1)'\"&%41\u202e.txt"


def words(page: str) -> str:
    """What a page says, without the marks of HTML."""
    page = re.sub(r"</?(?:bdi|code|time)[^>]*>", "", page)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def names_listed(page: str) -> list[str]:
    """The names in a directory's table, in its order."""
    cells = re.findall(r'<th scope="row">(.*?)</th>', page)
    return [words(cell).strip() for cell in cells]


class Outsiders(HTMLParser):
    """Finds what a page would load from elsewhere, or run inline."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in attributes):
            self.found.append(tag)
        for name, value in attributes.items():
            is_address = name in ("href", "src", "action")
            if name.startswith("on") or name == "style":
                self.found.append(f"{tag} {name}")
            if is_address and (value or "")[:1] not in ("/", "#"):
                self.found.append(f"{tag} {name}={value}")


# --- files ----------------------------------------------------------------------------------


def test_a_directory_has_names_sizes_and_authors(browser: Browser) -> None:
    said = words(browser.page())
    assert "2 names" in said
    assert re.search(r" a file 19 .{23} honest, uid 1000 write ", said)
    assert re.search(r" d/ directory 1 name .{23} intruder, uid 1000 create c ", said)


def test_a_directory_is_shown_as_it_was(browser: Browser, stage: Stage) -> None:
    page = browser.page(at=at(stage._since_us))
    assert re.search(r" a file 12 .{23} honest", words(page))
    assert "0 names" in words(page)
    assert "Nothing is in this directory" in words(browser.page(path="d", at=at(stage._since_us)))
    # Its links stay at that time.
    inside = re.search(r'href="[^"]*/(\?path=a&amp;at=[^"]*)"', page)
    assert inside is not None
    assert "Contents flour yeast Versions" in words(browser.get(html.unescape(inside[1])).text)


def test_times_of_change_are_links(browser: Browser, stage: Stage) -> None:
    page = browser.page(path="d")
    moments = re.findall(r'<li><a href="([^"]*at=[^"]*)"', page)
    assert len(moments) >= 2
    assert "Earlier" in words(page)
    assert "Later" not in words(page)
    past = browser.page(path="d", at=at(stage._since_us))
    assert "Later" in words(past)
    assert len(re.findall('aria-current="true"', past)) == 1


def test_a_file_has_contents_and_versions(browser: Browser) -> None:
    said = words(browser.page(path="a"))
    assert "File, 19 bytes, mode 0600, uid 1000" in said
    assert "flour yeast 7 salt" in said
    assert said.count("what changed") >= 3
    assert "create a" in said


def test_what_a_version_changed_leaves_the_emptying_out(browser: Browser) -> None:
    """A program that rewrites a file makes it empty first."""
    page = browser.page(path="a")
    latest = html.unescape(re.findall(r'href="[^"]*/(diff\?[^"]*)"', page)[0])
    said = words(browser.get(latest).text)
    assert "2 lines added, 1 removed" in said
    assert "− removed yeast" in said
    assert "+ added salt" in said


def test_a_removed_file_is_there_before(browser: Browser, stage: Stage) -> None:
    before_us = stage.now_us
    stage.intruder.rm("a")
    page = browser.page(path="a", code=404)
    assert "Nothing is at this path now" in words(page)
    assert re.search(r"intruder 1000 unlink a what was there", words(page))
    assert "flour yeast 7 salt" in words(browser.page(path="a", at=at(before_us)))
    links = re.findall(r'href="[^"]*/(\?path=a[^"]*)" aria-label="What was there', page)
    assert "flour yeast 7" in words(browser.get(html.unescape(links[0])).text)


def test_a_file_that_was_replaced_has_its_past_by_its_name(browser: Browser, stage: Stage) -> None:
    stage.honest.write("new", "sugar\n")
    stage.honest.mv("new", "a")
    said = words(browser.page(path="a"))
    assert "sugar" in said
    assert "rename new to a" in said


def test_what_is_no_text_is_not_shown(browser: Browser, stage: Stage) -> None:
    stage.honest.write("a", "\0binary")
    assert "not text" in words(browser.page(path="a"))
    stage.honest.write("a", "")
    assert "It is empty" in words(browser.page(path="a"))


def test_what_cannot_be_read_has_versions_all_the_same(browser: Browser, stage: Stage) -> None:
    stage.intruder.cover("a", stage.intruder.poison("a"), end=4096)
    said = words(browser.page(path="a"))
    assert "They cannot be read: EIO" in said
    assert "create a" in said


def test_hostile_names_are_shown_and_lead_to_their_files(browser: Browser, stage: Stage) -> None:
    stage.honest.write(HOSTILE, "inside\n")
    page = browser.page()
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert r"x\x0a\x1b[2J<script>alert(1)'" + '"&%41' + r"\u202e.txt" in words(page)
    (link,) = [each for each in re.findall(r'href="[^"]*/(\?[^"]*)"', page) if "alert" in each]
    inside = browser.get(html.unescape(link))
    assert inside.status_code == 200
    assert "inside" in inside.text
    assert "<script>alert" not in inside.text
    path = path_text((HOSTILE.encode(),))
    for address in ("diff", "map", "audit"):
        page = browser.page(address, path=path, old=at(stage._since_us))
        assert "<script>alert" not in page
        assert "\x1b" not in page


def test_hostile_contents_are_harmless(browser: Browser, stage: Stage) -> None:
    stage.honest.write("a", "<img src=x onerror=alert(1)>\x1b[2J\n\tindented\n" + "y" * 3000)
    for page in (
        browser.page(path="a"),
        browser.page("diff", path="a", old=at(stage._since_us)),
    ):
        assert "<img" not in page
        assert "\x1b" not in page
        assert r"onerror=alert(1)&gt;\x1b[2J" in page
        assert "\tindented" in page
        assert "(2,000 more characters" in page


@pytest.mark.parametrize(
    "names", [(), (b"a",), (b"a b", b"c%d"), (b"\xff\n", "Zoë日".encode()), (b"?&#+=",)]
)
def test_paths_are_text_and_back(names: tuple[bytes, ...]) -> None:
    text = path_text(names)
    assert text.isprintable()
    assert names_in(text) == names


def test_names_that_are_no_text_have_pages(browser: Browser, stage: Stage) -> None:
    stage.honest.write("plain", "inside\n")
    directory, _ = stage.honest._place("plain")
    raw = b"raw\xff"
    who = stage.view().who
    stage.honest.run(stage.honest.files.rename(directory, b"plain", directory, raw, who, flags=0))
    page = browser.page()
    assert r"raw\xff" in page
    (link,) = re.findall(r'href="[^"]*/(\?path=raw[^"]*)"', page)
    assert "inside" in browser.get(html.unescape(link)).text


# --- bounds ---------------------------------------------------------------------------------


def test_large_directories_have_pages(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "ENTRIES_SHOWN", 3)
    for number in range(5):
        stage.honest.write(f"d/f{number}", "x")
    first = browser.page(path="d")
    assert "6 names, page 1 of 2" in words(first)
    assert names_listed(first) == ["c", "f0", "f1"]
    link = re.search(r'rel="next" href="[^"]*/(\?[^"]*page=2)"', first)
    assert link is not None
    second = browser.get(html.unescape(link[1])).text
    assert "page 2 of 2" in words(second)
    assert names_listed(second) == ["f2", "f3", "f4"]
    assert "page 2 of 2" in words(browser.page(path="d", page="99"))


def test_what_is_left_out_of_a_directory_is_said(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ENTRIES_READ", "_NAMES_TOGETHER"):
        monkeypatch.setattr(tree, name, 2)
    for number in range(4):
        stage.honest.write(f"d/f{number}", "x")
    said = words(browser.page(path="d"))
    assert "This directory has 5 names, of which 2 have been read" in said


def test_many_versions_have_pages(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "VERSIONS_SHOWN", 3)
    for number in range(3):
        stage.honest.chmod("a", 0o600 + number)
    first = browser.page(path="a")
    assert "create a what changed" not in words(first)
    for _ in range(2):
        link = re.search(r'rel="next" href="[^"]*/(\?[^"]*until=[^"]*)"', first)
        assert link is not None
        first = browser.get(html.unescape(link[1])).text
    assert "create a what changed" in words(first)


def test_long_contents_are_cut(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.honest.write("a", "é" * 10)
    monkeypatch.setattr(tree, "TEXT_SHOWN", 5)
    said = words(browser.page(path="a"))
    assert "The first 5 of 20 bytes are shown" in said
    assert "éé" in said
    assert "ééé" not in said


def test_moments_around_the_one_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOMENTS_SHOWN", 4)
    moments = tree.Moments(list(range(100, 0, -10)))
    now = tree.times_shown(moments, None)
    assert (now.times, now.shown, now.count) == ([70, 80, 90, 100], -1, 10)
    assert (now.earlier_us, now.later_us) == (90, None)
    past = tree.times_shown(moments, 55)
    assert (past.times, past.shown) == ([40, 50, 60, 70], 1)
    assert (past.earlier_us, past.later_us) == (40, 60)
    before = tree.times_shown(moments, 5)
    assert (before.shown, before.earlier_us, before.later_us) == (-1, None, 10)
    assert tree.times_shown(tree.Moments([]), 5).times == []


# --- differences ----------------------------------------------------------------------------


def test_lines_that_differ_have_their_numbers() -> None:
    old = "".join(f"{n}\n" for n in range(1, 31))
    found = differences.compared(old, old.replace("15\n", "15\nnew\n").replace("20\n", ""))
    assert (found.added, found.removed, found.left_out) == (1, 1, "")
    assert [(each.old, each.new, each.what) for each in found.lines if each.what != "same"] == [
        (None, None, "gap"),
        (None, 16, "added"),
        (20, None, "removed"),
        (None, None, "gap"),
    ]
    same = [each.text.strip() for each in found.lines if each.what == "same"]
    assert same == ["13", "14", "15", "16", "17", "18", "19", "21", "22", "23"]


@pytest.mark.parametrize(
    ("old", "new", "added", "removed"),
    [
        ("", "", 0, 0),
        ("a\n", "a\n", 0, 0),
        ("", "a\nb\n", 2, 0),
        ("a\nb\n", "", 0, 2),
        ("a\n", "a", 1, 1),
        ("a\na\n", "a\na\na\n", 1, 0),
        ("b\na\n", "a\n", 0, 1),
    ],
)
def test_what_was_added_and_removed(old: str, new: str, added: int, removed: int) -> None:
    found = differences.compared(old, new)
    assert (found.added, found.removed) == (added, removed)
    assert bool(found.lines) == bool(added or removed)


def test_large_differences_are_cut() -> None:
    found = differences.compared("", "x\n" * 5000)
    assert len(found.lines) == differences.LINES_SHOWN
    assert found.left_out == "4,000 further lines are not shown."
    many = "".join(f"{n}\n" for n in range(3000))
    more = differences.compared(many, "".join(f"{n}!\n" for n in range(3000)))
    assert more.lines == []
    assert more.left_out == "More than 2,000 lines differ."


def test_a_page_says_why_there_is_nothing_to_compare(browser: Browser, stage: Stage) -> None:
    since = at(stage._since_us)
    assert "nothing was at this path" in words(browser.page("diff", path="d/c", old=since))
    assert "it was a directory" in words(browser.page("diff", path="d", old=since))
    assert "No line differs" in words(browser.page("diff", path="a", old=at(stage.now_us)))
    stage.honest.write("a", "\0")
    assert "it was not text" in words(browser.page("diff", path="a", old=since))
    assert "earlier time" in words(browser.page("diff", path="a", code=400))


# --- the map --------------------------------------------------------------------------------


def test_the_map_has_a_cell_per_node_and_fragment(browser: Browser) -> None:
    page = browser.page("map", path="a")
    said = words(page)
    for state in ("✓✓ verified", "✓ right", "○ lacks", "✗ false", "– silent", "! refuses"):
        assert state in said
    for state in ("· hole", "✓ latest", "○ behind", "✗ different", "? unshown"):
        assert state in said
    assert "unusable" in said
    assert r"degraded: node 4 does not answer (object a\x0a<b>)" in said
    assert page.count('class="cell') == 6 * 49 + 11  # one object, 48 blocks, and the legend
    assert "Blocks 0 to 47 of 100" in said


def test_the_map_of_a_large_file_has_pages(browser: Browser) -> None:
    last = browser.page("map", path="a", first="96")
    assert "Blocks 96 to 99 of 100" in words(last)
    assert 'rel="prev"' in last
    assert 'rel="next"' not in last
    assert "none from number 200 on" in words(browser.page("map", path="a", first="200"))


# --- audit ----------------------------------------------------------------------------------


def test_an_audit_shows_what_an_undo_would_do_and_does_nothing(
    browser: Browser, stage: Stage
) -> None:
    stage.intruder.write("a", "mine\n")
    before = stage.tree()
    since = at(stage._since_us)
    said = words(browser.page("audit", client="intruder", since=since))
    assert "create c /mnt/d/c" in said
    assert "remove /mnt/d/c" in said
    assert "take back what was written to /mnt/a" in said
    assert "Nothing has been done" in said
    assert "bftfs undo '/mnt' --client 'intruder' --since" in said
    assert stage.tree() == before
    below = words(browser.page("audit", path="d", client="intruder", since=since))
    assert "/mnt/a" not in below


def test_an_audit_without_findings_says_so(browser: Browser, stage: Stage) -> None:
    said = words(browser.page("audit", client="intruder", since=at(stage.now_us)))
    assert "0 changes by intruder" in said
    assert "Nothing is to be taken back" in said


def test_long_audits_are_cut(
    browser: Browser, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "ROWS_SHOWN", 1)
    said = words(browser.page("audit", client="intruder", since=at(stage._since_us)))
    assert "1 more are not shown; bftfs audit lists all" in said


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"client": "intruder"}, "Say both"),
        ({"since": "2026"}, "Say both"),
        ({"client": "nobody", "since": "2026"}, "no client is called so"),
        ({"client": "intruder", "since": "whenever"}, "is no time"),
    ],
)
def test_mistakes_are_explained(browser: Browser, arguments: dict[str, str], why: str) -> None:
    page = browser.page("audit", code=400, **arguments)
    assert why in page
    assert 'role="alert"' in page


# --- problems -------------------------------------------------------------------------------


def test_problems_are_pages(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no such page" in words(browser.page("other", code=404))
    assert "is no time" in words(browser.page(at="x\x1b", code=400))
    assert "give a number" in words(browser.page(page="-1", code=400))
    assert "no path is as long" in words(browser.page(path="a/" * 300, code=400))
    for path in ("%00", "d/..", "."):
        assert "no path is as long" in words(browser.page(path=path, code=400))
    assert "There was no file system" in words(browser.page(at="2000", code=404))

    def fail(*_: object) -> None:
        raise QuorumUnavailable(heard=2, required=5, subject="a<b>")

    monkeypatch.setattr(tree, "moments_below", fail)
    said = words(browser.page(code=503))
    assert "a<b>: only 2 of the 5 nodes needed answered" in said


def test_pages_load_nothing_from_elsewhere_and_run_nothing_inline(
    browser: Browser, stage: Stage
) -> None:
    browser.record.take()
    since = at(stage._since_us)
    for address, arguments in (
        ("", {}),
        ("", {"path": "a"}),
        ("", {"path": "gone"}),
        ("diff", {"path": "a", "old": since}),
        ("map", {"path": "a"}),
        ("health", {}),
        ("audit", {"client": "intruder", "since": since}),
        ("enter", {"token": browser.gate.token}),
        ("other", {}),
    ):
        outsiders = Outsiders()
        outsiders.feed(browser.get(address, **arguments).text)
        assert outsiders.found == [], (address, arguments)
