"""mount.options"""

import pytest

from bftfs.errors import UsageError
from mount.options import Consistency, MountOptions, parse


def test_without_options_everything_has_its_default():
    assert parse("") == MountOptions()
    assert MountOptions().consistency is Consistency.CLOSE_TO_OPEN
    assert MountOptions().patience_s is None


def test_all_of_them():
    options = parse("ro,soft,timeout=7.5,allow_other,client=laptop,entry_timeout=2,attr_timeout=4")
    assert options.read_only
    assert options.patience_s == 7.5
    assert options.allow_other
    assert options.client == "laptop"
    assert (options.entry_timeout_s, options.attr_timeout_s) == (2, 4)


def test_the_last_of_two_that_contradict_each_other_counts():
    assert not parse("ro,rw").read_only
    assert parse("rw,ro").read_only
    assert parse("soft,hard").patience_s is None
    assert parse("strict,close-to-open").consistency is Consistency.CLOSE_TO_OPEN
    assert parse("nodev,dev,noexec").kernel == ("dev", "noexec")


def test_the_time_that_is_promised_is_shared_by_both_caches():
    options = parse("attr_timeout=4,entry_timeout=3,negative_timeout=1")
    assert options.cached_attributes_s * 2 == 4
    assert options.cached_entries_s * 2 == 3
    assert options.cached_absence_s * 2 == 1


def test_strict_caches_nothing_whatever_else_is_said():
    options = parse("strict,entry_timeout=10,attr_timeout=10,negative_timeout=10")
    assert options.cached_attributes_s == 0
    assert options.cached_entries_s == 0
    assert options.cached_absence_s == 0


def test_options_for_mount_and_systemd_are_ignored():
    line = "defaults,noauto,user,_netdev,nofail,x-systemd.automount,comment=ours,relatime"
    assert parse(line) == MountOptions()


def test_options_of_the_kernel_are_passed_on():
    assert parse("nosuid,nodev,noexec").kernel == ("nosuid", "nodev", "noexec")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour=red", "colour=red"),
        ("stricct", "did you mean strict?"),
        ("attr_timeout=soon", "attr_timeout=soon"),
        ("attr_timeout=-1", "from 0"),
        ("attr_timeout=nan", "attr_timeout=nan"),
        ("attr_timeout=inf", "attr_timeout=inf"),
        ("entry_timeout", "entry_timeout"),
        ("soft,timeout=0", "from 1"),
        ("timeout=5", "add soft"),
        ("client=", "client="),
        ("client=../admin", "client=../admin"),
        ("hard=yes", "hard=yes"),
    ],
)
def test_a_mistake_is_named(text: str, told: str):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert told in str(caught.value)


def test_a_sloppy_caller_has_unknown_ones_ignored():
    assert parse("colour=red,ro", sloppy=True) == MountOptions(read_only=True)
