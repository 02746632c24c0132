"""The POSIX user and groups on whose behalf a client asks; permissions are checked for these.

A client claims credentials. Its grant says which users it may act as (`bftfs.server.step.Grant`);
the methods of objects check what these users may do.
"""

from __future__ import annotations

from typing import NamedTuple


class Credentials(NamedTuple):
    """A user, its group, and its supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


NOBODY = Credentials(uid=65534, gid=65534)
