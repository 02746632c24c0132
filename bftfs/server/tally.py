"""Counters of a node's work, each with the text that explains it: metrics are made from them.

    @dataclass(slots=True)
    class HealingTally:
        passes: int = counter("Passes over all {what}.")

        @figure("How much of the current pass is done.")
        def progress(self) -> float: ...

    figures(tally, "bftfs_heal_objects_", what="objects")   # "bftfs_heal_objects_passes", …

**Concurrency.** Counted by the node's thread; the figures may be read by any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any, NamedTuple


class Figure(NamedTuple):
    """One number of a tally, now."""

    name: str  # of the metric
    help: str
    value: float


def counter(help: str, *, name: str = "", default: float = 0) -> Any:  # noqa: A002
    """A field of a dataclass that is a figure, named like the field unless `name` is given."""
    return field(default=default, metadata={"help": help, "name": name})


class _FigureProperty(property):
    """A property that is a figure."""

    def __init__(self, method: Callable[[Any], float], text: str, name: str) -> None:
        super().__init__(method)
        self.help = text
        self.name = name or method.__name__


def figure(help: str, *, name: str = "") -> Callable[[Callable[[Any], float]], Any]:  # noqa: A002
    """Makes a method a property that is a figure: `@figure("Its help text.")`."""
    return lambda method: _FigureProperty(method, help, name)


def figures(tally: Any, prefix: str, **words: str) -> Iterator[Figure]:
    """All figures of a tally: fields first. `words` replace `{…}` in the help texts."""
    found = [
        (each.name, each.metadata["name"] or each.name, each.metadata["help"])
        for each in (fields(tally) if is_dataclass(tally) else ())
        if "help" in each.metadata
    ]
    found += [
        (attribute, value.name, value.help)
        for attribute, value in vars(type(tally)).items()
        if isinstance(value, _FigureProperty)
    ]
    for attribute, name, text in found:
        yield Figure(prefix + name, text.format(**words), float(getattr(tally, attribute)))
