"""Finds classes and functions of the product by name, whichever module they are in.

Modules move between the commits that are compared; what they define mostly keeps its name.
"""

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Any


class Product:
    """What the modules below `bftfs` define, as attributes.

    `simulation` has what the simulator defines, some of it under names that others use too.
    """

    def __init__(self, tree: Path) -> None:
        """Import all modules in `tree` but the commands."""
        package = importlib.import_module("bftfs")
        if not Path(package.__path__[0]).is_relative_to(tree):
            raise RuntimeError(f"{package.__path__[0]} was imported, which is not in {tree}")
        for module in pkgutil.walk_packages(package.__path__, "bftfs."):
            if not module.name.startswith(("bftfs.cli", "bftfs.__main__")):
                importlib.import_module(module.name)
        self.simulation = Names("bftfs.simulation.")
        self._names = Names("bftfs.")

    def __getattr__(self, name: str) -> Any:
        """The definition of `name`."""
        return getattr(self._names, name)


class Names:
    """What the imported modules whose names begin with `prefix` define, as attributes."""

    def __init__(self, prefix: str) -> None:
        self._modules = [
            vars(module) for name, module in sys.modules.items() if name.startswith(prefix)
        ]

    def __getattr__(self, name: str) -> Any:
        """The only definition of `name`."""
        found = {
            id(value): value
            for module in self._modules
            if (value := module.get(name)) is not None
            and getattr(value, "__module__", module["__name__"]) == module["__name__"]
        }
        if len(found) != 1:
            raise AttributeError(f"{len(found)} modules of this tree define {name}")
        return next(iter(found.values()))

    def either(self, *names: str) -> Any:
        """The first of `names` that is defined: a class may have had another name in that tree."""
        for name in names[:-1]:
            try:
                return getattr(self, name)
            except AttributeError:
                continue
        return getattr(self, names[-1])
