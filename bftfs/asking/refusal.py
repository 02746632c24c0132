"""A node's refusal: the reply that replaces an answer, in both protocols.

The code is an errno:

- EAGAIN: the node is busy, distrusts its clock, or lacks something that its peers must supply. EIO:
  it has a fault. Neither tells anything about the request, which may be served later.
- ENODATA: the node has lost its store and has not rebuilt this part of it yet.
- ENOSPC: the node has no room. Other nodes may have.
- Anything else: a correct client with this grant and quota would not send the request.

A client believes a refusal only if nodes that cannot all be lying give the same reason.
"""

from __future__ import annotations

import errno
from typing import Annotated

from msgspec import Meta

from bftfs.wire.codec import Message


class Refused(Message, frozen=True, tag=0x50):
    """The node does not serve the request, and has changed nothing. `reason` is for people."""

    code: Annotated[int, Meta(ge=1, le=4095)]
    reason: Annotated[str, Meta(max_length=512)]

    @property
    def may_pass(self) -> bool:
        """True if the node may serve the same request later."""
        return self.code in {errno.EAGAIN, errno.EIO}
