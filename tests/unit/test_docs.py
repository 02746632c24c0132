"""What the pages name exists: files, modules and what is in them, tests, links and their anchors.

In a table a cell often names a module and then names in it: "`server.py` `_cull`". Such a name has
to be in a module of the same cell. Elsewhere it has to be somewhere in the code.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
CODE = ("bftfs", "nodes", "mount", "benchmarks", "tests")
PAGES = sorted(
    str(page.relative_to(PROJECT))
    for page in [*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")]
    if page.name != "simulation-campaign.md"  # a record: it names what there was then
)

_QUOTED = re.compile(r"`([^`\n]+)`")
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_FILE = re.compile(r"(?:bftfs|nodes|mount|benchmarks|tests|docs)/[\w./*-]*")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_PLACEHOLDER = re.compile(r"/[A-Z]+\b(?!\.)")  # as in `nodes/I/`
_ELSEWHERE = {"FOPEN_DIRECT_IO", "MAP_SHARED", "tests/fuzz/found/"}  # not in the repository


@cache
def text_of(path: str) -> str:
    return (PROJECT / path).read_text()


@cache
def sources() -> dict[str, frozenset[str]]:
    """The words of each file of code."""
    return {
        str(path.relative_to(PROJECT)): frozenset(re.findall(r"\w+", path.read_text()))
        for root in CODE
        for path in (PROJECT / root).rglob("*.py")
    }


@cache
def words(*, product: bool = False) -> frozenset[str]:
    kept = [
        found for path, found in sources().items() if not (product and path.startswith("tests/"))
    ]
    return frozenset().union(*kept)


@cache
def names_of_tests() -> frozenset[str]:
    return frozenset(
        name
        for path in (PROJECT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*def (test_\w+)", path.read_text(), flags=re.M)
    )


def bases_of(page: str) -> tuple[str, ...]:
    """Where a page's paths begin: "Code is under `bftfs/query_update/`"."""
    declared = re.findall(r"Code is under\s+((?:`[^`]+/`(?:, | and |\s)*)+)", text_of(page))
    return ("", "bftfs/", *re.findall(r"`([^`]+/)`", " ".join(declared)))


def files_called(name: str, page: str) -> list[str]:
    """The files, or directories, that `name` can stand for."""
    found = [
        str(path.relative_to(PROJECT))
        for base in bases_of(page)
        for path in (PROJECT / base).glob(name)
    ]
    if not found and "/" not in name and name.endswith(".py"):
        found = [path for path in sources() if path.endswith("/" + name)]
    return found


def is_named(name: str, path: str) -> bool:
    parts = name.split(".")
    if path.endswith(f"/{parts[0]}.py"):
        parts = parts[1:]
    return set(parts) <= sources().get(path, frozenset())


def is_test(name: str) -> bool:
    pattern = re.compile(re.escape(name).replace("…", r"\w*"))
    return any(pattern.fullmatch(test) for test in names_of_tests())


def is_there(name: str, page: str, modules: list[str]) -> bool:
    """True if there is what `name` names, or it is not the name of a file, a test or in the code.

    `modules`: where to look, if the page says where.
    """
    path, _, test = name.partition("::")
    if name in _ELSEWHERE or name.startswith(("…", "bftfs_")) or _PLACEHOLDER.search(name):
        return True  # the end of a name, a metric, a place with a placeholder
    if name.startswith("test_") and not name.endswith(".py"):
        return is_test(name)
    if path.endswith(".py") or _FILE.fullmatch(path):
        return bool(files_called(path, page)) and (not test or is_test(test))
    if not _NAME.fullmatch(name) or not ("_" in name or re.search("[a-z][A-Z]", name)):
        return True
    if modules:
        return any(is_named(name, module) for module in modules)
    return set(name.split(".")) <= words()


def missing_from(page: str) -> list[str]:
    """What the page names and there is not."""
    missing = []
    for line in text_of(page).splitlines():
        is_row = line.startswith("|")
        for cell in line.split(" | ") if is_row else [line]:
            names = _QUOTED.findall(cell)
            modules = [module for name in names if is_row for module in modules_of(name, page)]
            missing += [name for name in names if not is_there(name, page, modules)]
    return missing


def modules_of(name: str, page: str) -> list[str]:
    """The modules that `name` is or begins with: `server.py`, `limits.NAME_BYTES`."""
    file = name if name.endswith(".py") else f"bftfs/{name.partition('.')[0]}.py"
    return [path for path in files_called(file, page) if path in sources()]


def anchors_of(page: str) -> set[str]:
    """The anchors of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), flags=re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return set(plain)


def dead_links(page: str) -> list[str]:
    dead = []
    for link in _LINK.findall(text_of(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (PROJECT / page).parent / path if path else PROJECT / page
        if not target.exists() or (
            anchor and anchor not in anchors_of(str(target.resolve().relative_to(PROJECT)))
        ):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_exists(page: str) -> None:
    assert not missing_from(page)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    assert not dead_links(page)


def test_what_is_missing_is_found() -> None:
    assert not is_test("test_that_nobody_has_written")
    assert is_test("test_what_is_missing_…")
    assert not files_called("bftfs/no_such_module.py", "README.md")
    assert not is_named("no_such_name", "bftfs/limits.py")


def terms() -> list[tuple[str, list[str]]]:
    """The rows of the glossary: a term, and its names in the code."""
    rows = re.findall(r"^\| ([^|]+) \|.*\| ([^|]+) \|$", text_of("docs/glossary.md"), flags=re.M)
    return [(term, _QUOTED.findall(names)) for term, names in rows if term != "term"]


@pytest.mark.parametrize(("term", "names"), terms(), ids=lambda each: str(each)[:30])
def test_a_glossary_term_is_in_the_code(term: str, names: list[str]) -> None:
    assert names, term
    for name in names:
        known = set(re.split(r"[./]", name)) <= words(product=True)
        assert known or files_called(name, "docs/glossary.md"), (term, name)


def test_each_decision_has_a_number_of_its_own():
    numbers = Counter(page.name[:4] for page in (PROJECT / "docs/decisions").glob("*.md"))
    assert [number for number, pages in numbers.items() if pages > 1] == []
