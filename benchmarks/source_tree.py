"""The C source tree that the Andrew benchmark copies and compiles.

It is libsodium as the source distribution of PyNaCl carries it: 580 files in 120 directories, half
of them C, with a configure script of the usual kind, and nothing that it needs from elsewhere.  The
version is pinned by its digest.  Any other tree with a configure script or a Makefile can take its
place.
"""

import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path

from benchmarks.errors import BenchmarkError

CACHE_VARIABLE = "BFTFS_BENCHMARKS_CACHE"

_REQUIREMENT = "pynacl==1.5.0"
_ARCHIVE = "PyNaCl-1.5.0.tar.gz"
_SHA256 = "8ac7448f09ab85811607bdd21ec2464495ac8b7c66d146bf545b0f08fb9220ba"
_DOWNLOAD_PATIENCE_S = 300.0


class Kind(Enum):
    """The kind of an entry of a tree."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symbolic link"
    OTHER = "special file"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree, and what must be the same in a copy."""

    path: str  # relative to the tree's root
    kind: Kind
    mode: int
    content: str  # digest of a file, target of a symbolic link

    def differences(self, copied: "Entry") -> Iterator[str]:
        """The differences in `copied`."""
        if self.kind is not copied.kind:
            yield f"{self.path}: a {copied.kind.value}, not a {self.kind.value}"
        elif self.content != copied.content:
            yield f"{self.path}: another content"
        if self.mode != copied.mode:
            yield f"{self.path}: mode {copied.mode:04o}, not {self.mode:04o}"


def manifest(root: Path) -> dict[str, Entry]:
    """Every entry below `root`, read whole."""
    return {entry.path: entry for entry in _walk(root, "")}


def mismatches(original: dict[str, Entry], copied: dict[str, Entry]) -> list[str]:
    """In words, everything in which a copy differs from its original."""
    found: list[str] = []
    for path, entry in original.items():
        if path in copied:
            found += entry.differences(copied[path])
        else:
            found.append(f"{path}: missing")
    found += [f"{path}: not in the original" for path in copied if path not in original]
    return found


def locate_root(directory: Path) -> Path:
    """The root of the tree to build: the shallowest directory with a configure script or, if there
    is none, with a Makefile."""
    for name in ("configure", "Makefile"):
        found = [path.parent for path in directory.rglob(name) if path.is_file()]
        if found:
            return min(found, key=lambda path: (len(path.parts), path))
    raise BenchmarkError(
        f"{directory}: neither a configure script nor a Makefile in it; --source takes a C source"
        f" tree that builds with make, for example an unpacked {_ARCHIVE}"
    )


def unpacked(source: Path | None, scratch: Path) -> Path:
    """The root of the tree: of `source`, a directory or an archive, or of the pinned archive, which
    is fetched if need be.  What has to be unpacked is unpacked below `scratch`."""
    archive = source if source is not None else _fetched()
    if archive.is_dir():
        return locate_root(archive)
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, members=_members(opened))
    except (OSError, tarfile.TarError) as error:
        raise BenchmarkError(f"{archive}: cannot be unpacked: {error}") from error
    return locate_root(scratch)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members that belong in a source tree, owned by whoever unpacks them."""
    for member in archive:
        path = Path(member.name)
        if path.is_absolute() or ".." in path.parts:
            raise BenchmarkError(f"the archive has a member {member.name}, which leads out of it")
        if member.isreg() or member.isdir() or member.issym():
            member.uid, member.gid = os.geteuid(), os.getegid()
            member.uname = member.gname = ""
            yield member


def _fetched() -> Path:
    """The pinned archive, from the cache or from the package registry."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "bftfs-benchmarks")
    archive = cache / _ARCHIVE
    if archive.is_file() and sha256(archive.read_bytes()).hexdigest() == _SHA256:
        return archive
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            _download(Path(scratch))
            (Path(scratch) / _ARCHIVE).replace(archive)
    except OSError as error:
        raise BenchmarkError(
            f"{cache}: {error.strerror}; set {CACHE_VARIABLE} to a directory that can be written"
        ) from error
    return archive


def _download(destination: Path) -> None:
    # pip compares the digest before it looks into the archive.  It then asks the archive for its
    # metadata, for which it sets up a build environment; there is no way to spare it that.
    requirements = destination / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--no-binary", "pynacl", "--dest", str(destination), "-r", str(requirements)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_PATIENCE_S, check=False
        )
        complaint = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        failed = done.returncode != 0 or not (destination / _ARCHIVE).is_file()
    except subprocess.TimeoutExpired:
        complaint, failed = f"no answer in {_DOWNLOAD_PATIENCE_S:.0f} s", True
    if failed:
        raise BenchmarkError(
            f"{_REQUIREMENT} could not be downloaded: {complaint}. Get {_ARCHIVE} (a source"
            " distribution from the package registry) in another way and pass --source PATH"
        )


def _walk(root: Path, below: str) -> Iterator[Entry]:
    with os.scandir(root / below) as listing:
        entries = sorted(listing, key=lambda entry: entry.name)
    for entry in entries:
        path = os.path.join(below, entry.name)
        mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
        if entry.is_symlink():
            yield Entry(path, Kind.SYMLINK, mode, os.readlink(entry.path))
        elif entry.is_dir():
            yield Entry(path, Kind.DIRECTORY, mode, "")
            yield from _walk(root, path)
        elif entry.is_file():
            yield Entry(path, Kind.FILE, mode, sha256(Path(entry.path).read_bytes()).hexdigest())
        else:
            yield Entry(path, Kind.OTHER, mode, "")
