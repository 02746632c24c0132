"""up, down, status, mount options, and how a mount ends."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.cluster import Cluster, CommandFailed, bftfs, is_running, kill
from tests.end_to_end.expectations import (
    assert_contents,
    eventually,
    fails_with,
    opened,
    payload,
)
from tests.end_to_end.watchdog import PROJECT, Watchdog, mounts_below
from tests.integration.service_manager import ServiceManager


@pytest.fixture(scope="module")
def own_cluster(mounting: None, playground: Path, watchdog: Watchdog) -> Iterator[Cluster]:
    """A cluster to be started and stopped."""
    cluster = Cluster(playground / "living")
    try:
        yield cluster
    finally:
        cluster.down()


@pytest.fixture
def cluster(own_cluster: Cluster, guarded: None) -> Cluster:
    own_cluster.up()
    return own_cluster


def test_second_up_is_harmless(cluster: Cluster) -> None:
    (cluster.mountpoint / "file").write_bytes(b"data")
    before = cluster.nodes(), cluster.mount_pids()
    with opened(cluster.mountpoint / "file", os.O_RDONLY) as descriptor:
        cluster.up()
        assert os.read(descriptor, 10) == b"data"
    assert (cluster.nodes(), cluster.mount_pids()) == before


def test_status_names_what_runs(cluster: Cluster) -> None:
    nodes = cluster.nodes()
    assert len(nodes) == 6
    assert len({node.number for node in nodes}) == 6
    assert len({node.address for node in nodes}) == 6
    assert all(is_running(node.pid) for node in nodes)
    assert all(node.healthy for node in nodes)
    assert all(is_running(pid) for pid in cluster.mount_pids())
    kill(nodes[2].pid)
    states = {node.number: node.healthy for node in cluster.nodes()}
    assert [number for number, healthy in states.items() if not healthy] == [nodes[2].number]
    cluster.up()
    assert all(node.healthy for node in cluster.nodes())


def test_all_survives_stop_and_start(cluster: Cluster) -> None:
    top = cluster.mountpoint / "kept"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "b" / "file").write_bytes(payload(500_000))
    (top / "link").hardlink_to(top / "a" / "b" / "file")
    (top / "symlink").symlink_to("a/b")
    (top / "a").chmod(0o2750)
    os.chown(top / "link", 7, 8)
    os.setxattr(top / "link", "user.name", b"value")
    os.utime(top / "link", ns=(10**18, 10**18 + 1))
    before = {path: path.lstat()[:4] for path in top.rglob("*")}
    running = [node.pid for node in cluster.nodes()] + cluster.mount_pids()
    cluster.down()
    assert cluster.mountpoint not in mounts_below(cluster.mountpoint)
    assert not any(is_running(pid) for pid in running)
    cluster.down()  # a second time, which is harmless
    cluster.up()
    after = {path: path.lstat()[:4] for path in top.rglob("*")}
    assert {p: (s[0], s[3]) for p, s in after.items()} == {
        p: (s[0], s[3]) for p, s in before.items()
    }
    assert_contents(top / "symlink" / "file", payload(500_000))
    status = (top / "link").stat()
    assert (status.st_uid, status.st_gid, status.st_mtime_ns) == (7, 8, 10**18 + 1)
    assert os.getxattr(top / "link", "user.name") == b"value"


def test_down_waits_for_a_mount_that_somebody_has_detached(cluster: Cluster) -> None:
    """Its process still has to write: nodes that stop under its hands would take that away."""
    descriptor = os.open(cluster.mountpoint / "late", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, payload(3_000_000))
    subprocess.run(["umount", "--lazy", cluster.mountpoint], check=True)
    os.close(descriptor)
    cluster.down()
    assert not cluster.mount_pids()
    cluster.up()
    assert_contents(cluster.mountpoint / "late", payload(3_000_000))


def test_down_ends_mounts_whose_nodes_are_all_gone(cluster: Cluster, playground: Path) -> None:
    """Whoever only looks at such a mount waits for ever."""
    other = playground / "forsaken"
    other.mkdir()
    bftfs("mount", "--data", cluster.data, "-o", "attr_timeout=0", other)
    for node in cluster.nodes():
        kill(node.pid)
    cluster.down()
    assert other not in mounts_below(other)
    assert not cluster.mount_pids()


def test_busy_mount_is_refused_in_words(cluster: Cluster) -> None:
    (cluster.mountpoint / "busy").write_bytes(b"data")
    with opened(cluster.mountpoint / "busy", os.O_RDONLY) as descriptor:
        with pytest.raises(CommandFailed) as refused:
            cluster.down()
        assert str(cluster.mountpoint) in str(refused.value)
        assert "Traceback" not in str(refused.value)
        assert os.pread(descriptor, 10, 0) == b"data"


def test_options(cluster: Cluster, playground: Path) -> None:
    (cluster.mountpoint / "file").write_bytes(b"data")
    with cluster.mount(playground / "read-only", "ro") as mountpoint:
        file = mountpoint / "file"
        assert_contents(file, b"data")
        for attempt in (
            lambda: os.open(file, os.O_WRONLY),
            (mountpoint / "new").touch,
            (mountpoint / "new").mkdir,
            file.unlink,
            lambda: file.rename(mountpoint / "new"),
            lambda: file.chmod(0o600),
            lambda: os.truncate(file, 0),
            lambda: os.setxattr(file, "user.name", b"value"),
        ):
            with fails_with(errno.EROFS):
                attempt()
        file.read_bytes()
    assert_contents(cluster.mountpoint / "file", b"data")


def test_clients_come_and_go_while_all_runs(cluster: Cluster, playground: Path) -> None:
    before = cluster.nodes()
    bftfs("cluster", "add-client", "guest", "--any-uid", "--data", cluster.data)
    with cluster.mount(playground / "guest", "client=guest") as mountpoint:
        (mountpoint / "file").write_bytes(b"a guest's")
        assert_contents(cluster.mountpoint / "file", b"a guest's")
        said = bftfs("cluster", "revoke-client", "guest", "--data", cluster.data)
        assert "Nodes 0, 1, 2, 3, 4, 5 have cut it off." in said
        with fails_with(errno.EACCES):
            (mountpoint / "other").touch()
    assert_contents(cluster.mountpoint / "file", b"a guest's")
    assert not (cluster.mountpoint / "other").exists()
    assert cluster.nodes() == before


def test_unknown_option_is_refused_in_words(cluster: Cluster, playground: Path) -> None:
    with (
        pytest.raises(CommandFailed) as refused,
        cluster.mount(playground / "odd", "strickt"),
    ):
        pass
    assert "strickt" in str(refused.value)
    assert "Traceback" not in str(refused.value)


def test_mount_helper_as_fstab_uses_it(cluster: Cluster, playground: Path) -> None:
    """mount(8) runs it as `mount.TYPE SOURCE DIRECTORY -o OPTIONS`."""
    (cluster.mountpoint / "file").write_bytes(b"data")
    mountpoint = playground / "by-fstab"
    mountpoint.mkdir()
    helper = Path(sys.executable).with_name("mount.bftfs")
    finished = subprocess.run(
        [helper, cluster.data, mountpoint, "-o", "rw,noauto,strict,allow_other,_netdev"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    try:
        assert_contents(mountpoint / "file", b"data")
    finally:
        bftfs("unmount", mountpoint)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_mount_that_is_told_to_end_writes_everything(
    cluster: Cluster, playground: Path, signal_number: signal.Signals
) -> None:
    """Also what no program has closed or synced yet."""
    mountpoint = playground / f"ending-{signal_number.name}"
    mountpoint.mkdir()
    manager = ServiceManager()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "bftfs",
            "mount",
            "--foreground",
            "--data",
            cluster.data,
            mountpoint,
        ],
        cwd=PROJECT,
        env=manager.environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        heard = manager.hears_until("READY=1", within_s=20)
        assert set(heard) <= {"READY=1", "WATCHDOG=1"}
        eventually(
            lambda: mountpoint in mounts_below(mountpoint), within_s=20, what="it is mounted"
        )
        name = f"written-{signal_number.name}"
        descriptor = os.open(mountpoint / name, os.O_CREAT | os.O_RDWR)
        os.write(descriptor, payload(300_000))
        process.send_signal(signal_number)
        _, complaints = process.communicate(timeout=30)
        assert b"Traceback" not in complaints, complaints.decode()
        assert mountpoint not in mounts_below(mountpoint)
        manager.hears_until("STOPPING=1", within_s=1)
        with contextlib.suppress(OSError):
            os.close(descriptor)
        assert_contents(cluster.mountpoint / name, payload(300_000))
    finally:
        process.kill()
        process.wait()
        manager.close()


def test_dead_mount_is_mounted_again(cluster: Cluster) -> None:
    """The kernel keeps the place of a killed mount; `up` makes it good."""
    (cluster.mountpoint / "file").write_bytes(b"data")
    kill(*cluster.mount_pids(cluster.mountpoint))
    with fails_with(errno.ENOTCONN, errno.ECONNABORTED):
        os.listdir(cluster.mountpoint)
    cluster.up()
    assert_contents(cluster.mountpoint / "file", b"data")


def test_idle_cluster_uses_next_to_no_processor(cluster: Cluster) -> None:
    pids = [node.pid for node in cluster.nodes()] + cluster.mount_pids()
    (cluster.mountpoint / "file").write_bytes(b"data")
    cluster.nodes()
    settled = time.monotonic() + 1.0
    while time.monotonic() < settled:
        time.sleep(0.1)
    before = sum(map(_processor_s, pids))
    time.sleep(3)
    used = sum(map(_processor_s, pids)) - before
    assert used < 0.15, f"{len(pids)} idle processes used {used:.2f} s within 3 s"


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
