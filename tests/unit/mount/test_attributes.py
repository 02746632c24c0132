"""mount.operations"""

import stat
from types import SimpleNamespace

from pyfuse3 import EntryAttributes

from bftfs import limits
from bftfs.filesystem.attributes import Attributes, Layout
from mount.operations import fill

FILE = Attributes(
    mode=stat.S_IFREG | 0o4751,
    uid=1000,
    gid=100,
    links=3,
    size=(1 << 40) - 1,
    atime_ns=1_790_000_000_000_000_001,
    mtime_ns=-5,
    ctime_ns=1_790_000_000_999_999_999,
    version=77,
    layout=Layout(1 << 20),
)


def filled(attributes: Attributes) -> SimpleNamespace:
    entry = SimpleNamespace()
    fill(entry, 42, attributes)  # type: ignore[arg-type]
    return entry


def test_every_field_of_a_file():
    assert vars(filled(FILE)) == {
        "st_ino": 42,
        "st_mode": stat.S_IFREG | 0o4751,
        "st_nlink": 3,
        "st_uid": 1000,
        "st_gid": 100,
        "st_rdev": 0,
        "st_size": (1 << 40) - 1,
        "st_blksize": 1 << 20,
        "st_blocks": 1 << 31,
        "st_atime_ns": 1_790_000_000_000_000_001,
        "st_mtime_ns": -5,
        "st_ctime_ns": 1_790_000_000_999_999_999,
    }


def test_they_pass_through_pyfuse3_to_the_nanosecond():
    entry = EntryAttributes()
    fill(entry, (1 << 63) - 1, FILE)
    assert entry.st_ino == (1 << 63) - 1
    assert entry.st_atime_ns == FILE.atime_ns
    assert entry.st_ctime_ns == FILE.ctime_ns
    assert entry.st_size == FILE.size


def test_what_has_no_layout_has_the_usual_block_size():
    device = Attributes(
        mode=stat.S_IFCHR | 0o600, uid=0, gid=0, links=1, size=0, atime_ns=0, mtime_ns=0,
        ctime_ns=0, version=1, device=0x103,
    )  # fmt: skip
    assert filled(device).st_rdev == 0x103
    assert filled(device).st_blksize == limits.BLOCK_BYTES_DEFAULT
    assert filled(device).st_blocks == 0
