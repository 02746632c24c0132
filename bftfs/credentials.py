"""On whose behalf a client asks: the POSIX user and groups that permissions are checked for.

A client claims credentials; whether it may is the grant's business (`bftfs.server.step.Grant`),
and what they permit is that of whoever knows the object.
"""

from __future__ import annotations

from typing import NamedTuple


class Credentials(NamedTuple):
    """A user, its group, and its supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


NOBODY = Credentials(uid=65534, gid=65534)
