"""Real mounts for the end-to-end tests.

The tests of `posix/` and of the programs say what any Linux file system does. They run on a mount
of a local cluster of six nodes; with BFTFS_TEST_DIRECTORY=/some/dir they run in that directory
instead, which is how they are themselves tested (ext4 must pass), and the tests that need a cluster
are skipped. Everything happens below one temporary directory that other users may enter.
"""

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster
from tests.end_to_end.expectations import in_another_process, unavailable
from tests.end_to_end.watchdog import Watchdog

HERE = Path(__file__).parent
OTHER_DIRECTORY = os.environ.get("BFTFS_TEST_DIRECTORY")
TEST_TIMEOUT_S = 150

_directory_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "isolated: runs in a process of its own, which a signal may end (SIGBUS)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an `isolated` test in a process of its own.

    A page fault on a mapped file that cannot be served is no exception but SIGBUS.
    """
    if pyfuncitem.get_closest_marker("isolated") is None:
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    in_another_process(lambda: pyfuncitem.obj(**arguments))
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """No test here runs for ever: a broken file system is one that hangs."""
    for item in items:
        if item.path.is_relative_to(HERE):
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S, func_only=True))
            if OTHER_DIRECTORY is None:
                item.add_marker(pytest.mark.mounted)


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def playground() -> Iterator[Path]:
    """A directory on the local disk, for everything; everybody may enter."""
    root = Path(tempfile.mkdtemp(prefix="bftfs-end-to-end-"))
    root.chmod(0o755)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def watchdog(playground: Path) -> Iterator[Watchdog]:
    with Watchdog(playground) as watchdog:
        yield watchdog


@pytest.fixture(scope="session")
def other_directory() -> Path | None:
    """The directory that the tests of POSIX shall run in, if not on a mount."""
    return None if OTHER_DIRECTORY is None else Path(OTHER_DIRECTORY).resolve(strict=True)


@pytest.fixture(scope="session")
def mounting(other_directory: Path | None) -> None:
    """The test needs mounts of clusters."""
    if other_directory is not None:
        pytest.skip("needs a mount of bftfs, but BFTFS_TEST_DIRECTORY is set")
    if os.geteuid() != 0:
        unavailable("needs root, to mount for all users")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        unavailable("needs /dev/fuse")


@pytest.fixture(scope="session")
def cluster(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Cluster]:
    """The cluster that most tests share; none of them kills anything of it."""
    cluster = Cluster(playground / "shared")
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def guarded(request: pytest.FixtureRequest, watchdog: Watchdog) -> Iterator[None]:
    """The mounts are aborted when the test takes too long."""
    limit = request.node.get_closest_marker("timeout").args[0]
    with watchdog.guard(limit, request.node.name):
        yield


@pytest.fixture
def mountpoint(request: pytest.FixtureRequest, other_directory: Path | None, guarded: None) -> Path:
    """Where the file system under test is mounted."""
    if other_directory is not None:
        return other_directory
    cluster: Cluster = request.getfixturevalue("cluster")
    if not cluster.is_alive():
        # A test before this one has brought the mount down, and has failed; this one need not.
        cluster.up()
    return cluster.mountpoint


@pytest.fixture
def directory(
    request: pytest.FixtureRequest, mountpoint: Path, other_directory: Path | None
) -> Iterator[Path]:
    """A new, empty directory on the file system under test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.originalname.removeprefix("test_").lower())
    path = mountpoint / f"{next(_directory_numbers)}-{name}"
    path.mkdir()
    yield path
    if other_directory is not None:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def outside(playground: Path) -> Path:
    """A new, empty directory on the local disk."""
    path = playground / f"outside-{next(_directory_numbers)}"
    path.mkdir()
    return path
