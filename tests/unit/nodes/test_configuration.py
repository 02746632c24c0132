"""`node.toml`: defaults, settings, and mistakes that name the file and the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from bftfs.cluster import Durability
from bftfs.errors import UsageError
from bftfs.server.block_verification import VerificationPolicy, VerificationSettings
from nodes.configuration import NodeConfiguration

DEFAULTS = NodeConfiguration(
    durability=Durability.SYNC,
    capacity_bytes=None,
    pool_bytes=None,
    client_bytes=None,
    metrics="unix:/node/metrics.socket",
    log_level="info",
    verification=VerificationSettings(),
)


def load(path: Path, text: str | None = None) -> NodeConfiguration:
    file = path / "node.toml"
    if text is not None:
        file.write_text(text)
    return NodeConfiguration.load(
        file, durability=Durability.SYNC, metrics="unix:/node/metrics.socket"
    )


def test_everything_is_optional(tmp_path: Path) -> None:
    assert load(tmp_path) == DEFAULTS
    assert load(tmp_path, "") == DEFAULTS


def test_what_is_set_counts(tmp_path: Path) -> None:
    configuration = load(
        tmp_path,
        """
        durability = "interval"
        capacity_bytes = 100_000_000
        pool_bytes = 80_000_000
        client_bytes = 50_000_000
        metrics = "tcp:127.0.0.1:9100"
        log_level = "debug"
        verification = "write-time"
        possible_versions = 1000
        client_possible_versions = 100
        block_possible_versions = 10
        """,
    )
    assert configuration == NodeConfiguration(
        durability=Durability.INTERVAL,
        capacity_bytes=100_000_000,
        pool_bytes=80_000_000,
        client_bytes=50_000_000,
        metrics="tcp:127.0.0.1:9100",
        log_level="debug",
        verification=VerificationSettings(VerificationPolicy.WRITE_TIME, 1000, 100, 10),
    )
    assert load(tmp_path, 'metrics = "off"').metrics is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("durability = ", "cannot be read"),
        ('durability = "never"', 'durability = \'never\'; write "sync" or "interval"'),
        ("durability = 1", 'durability = 1; write "sync" or "interval"'),
        ('metric = "off"', "there is no setting 'metric'; the settings are durability"),
        ("metrics = 9100", 'metrics = 9100; write an address or "off"'),
        ('metrics = "localhost"', "is not an address"),
        ("capacity_bytes = 100", "capacity_bytes = 100; write a whole number, 16777216 or more"),
        ("client_bytes = true", "client_bytes = True; write a whole number"),
        ('log_level = "loud"', "log_level = 'loud'; write one of debug, info, warning, error"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError) as mistake:
        load(tmp_path, text)
    assert str(tmp_path / "node.toml") in str(mistake.value)
    assert message in str(mistake.value)


def test_a_file_that_is_no_text_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)
