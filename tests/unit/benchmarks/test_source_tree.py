"""Where the source tree comes from, and how a copy of it is compared."""

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks import source_tree
from benchmarks.errors import BenchmarkError
from benchmarks.source_tree import locate_root, manifest, mismatches, unpacked


def test_a_manifest_equals_itself(tiny_tree: Path) -> None:
    entries = manifest(tiny_tree)
    assert set(entries) == {
        "Makefile",
        "empty",
        "empty/below",
        "empty/link.c",
        "empty/script.sh",
        "greeting.c",
        "main.c",
    }
    assert mismatches(entries, manifest(tiny_tree)) == []


def test_another_kind_of_entry_is_a_mismatch(tiny_tree: Path) -> None:
    original = manifest(tiny_tree)
    (tiny_tree / "main.c").unlink()
    (tiny_tree / "main.c").mkdir()
    assert "main.c: a directory, not a file" in mismatches(original, manifest(tiny_tree))


def test_the_root_is_where_configure_is(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "Makefile").touch()
    (tmp_path / "src" / "library").mkdir(parents=True)
    (tmp_path / "src" / "library" / "configure").touch()
    assert locate_root(tmp_path) == tmp_path / "src" / "library"


def test_a_tree_that_cannot_be_built_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="neither a configure script nor a Makefile"):
        unpacked(tmp_path, tmp_path / "scratch")


def test_an_archive_must_stay_in_its_directory(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as opened:
        opened.addfile(tarfile.TarInfo("../outside"), io.BytesIO())
    with pytest.raises(BenchmarkError, match="leads out of it"):
        unpacked(archive, tmp_path / "scratch")
    assert not (tmp_path / "outside").exists()


def test_what_is_not_an_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "text"
    archive.write_text("no archive")
    with pytest.raises(BenchmarkError, match="cannot be unpacked"):
        unpacked(archive, tmp_path / "scratch")


def test_a_cached_archive_with_another_digest_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / source_tree._ARCHIVE).write_text("something else")
    monkeypatch.setenv(source_tree.CACHE_VARIABLE, str(tmp_path))
    # No index is asked: what pip is left with is the cached file, whose digest it compares.
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BenchmarkError, match="--source PATH") as raised:
        unpacked(None, tmp_path / "scratch")
    assert "could not be downloaded" in str(raised.value)
