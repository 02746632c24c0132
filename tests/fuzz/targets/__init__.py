"""All fuzz targets. To add one: a module here with `TARGETS`, named in `_MODULES`."""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.target import Target

_MODULES = (
    "wire",
    "objects",
    "filesystem",
    "storage",
    "files",
    "servers",
    "clients",
    "nodes",
    "mounts",
)


def all_targets() -> dict[str, Target]:
    """The targets by name."""
    targets: dict[str, Target] = {}
    for module in _MODULES:
        for target in import_module(f"tests.fuzz.targets.{module}").TARGETS:
            assert target.name not in targets, target.name
            targets[target.name] = target
    return targets
