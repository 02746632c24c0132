"""What a node says instead of an answer, whichever part of it refuses, in either protocol.

The code is an errno:

- EAGAIN: the node is busy, distrusts its clock, or lacks what its peers must supply. EIO: it has a
  fault. Neither says anything about the request, which may be served another time.
- ENODATA: the node has lost its store and has not rebuilt this part of it yet.
- ENOSPC: the node has no room. Other nodes may have.
- Anything else: a correct client with this grant and quota would not send the request.

A client believes a refusal only if nodes say the same that cannot all be lying.
"""

from __future__ import annotations

import errno
from typing import Annotated

from msgspec import Meta

from bftfs.wire.codec import Message


class Refused(Message, frozen=True, tag=0x50):
    """The node does not serve the request; nothing was done. `reason` is for people."""

    code: Annotated[int, Meta(ge=1, le=4095)]
    reason: Annotated[str, Meta(max_length=512)]

    @property
    def may_pass(self) -> bool:
        """True if the node may serve the same request another time."""
        return self.code in {errno.EAGAIN, errno.EIO}
