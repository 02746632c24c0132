"""Access times by relatime: noted on a read, shown to programs at once, sent to the nodes later.

Pending access times are lost if the mount process dies. No other change waits like this.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Final

import msgspec

from bftfs.conversation import Now
from bftfs.credentials import Credentials
from bftfs.errors import FileSystemError, OperationFailed
from bftfs.filesystem.attribute_methods import Access, is_access_due
from bftfs.filesystem.attributes import Attributes
from bftfs.filesystem.metadata import Metadata
from bftfs.filesystem.objects import NANOSECONDS_PER_MICROSECOND
from bftfs.filesystem.registry import ACCESSED
from bftfs.identifiers import ObjectId

PENDING: Final = 4_096  # access times that wait; beyond that, the oldest is forgotten


class AccessTimes:
    """The access times that have not been sent to the nodes."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._pending: OrderedDict[ObjectId, tuple[int, Credentials]] = OrderedDict()  # by time

    def seen_by_programs(self, identifier: ObjectId, attributes: Attributes) -> Attributes:
        """`attributes` with the pending access time, if there is one."""
        pending = self._pending.get(identifier)
        if pending is None or pending[0] <= attributes.atime_ns:
            return attributes
        return msgspec.structs.replace(attributes, atime_ns=pending[0])

    async def note(self, identifier: ObjectId, seen: Attributes, who: Credentials) -> None:
        """Remember a read of the object with attributes `seen`, if relatime records it."""
        atime_ns = await Now() * NANOSECONDS_PER_MICROSECOND
        if is_access_due(seen, atime_ns):
            self._pending[identifier] = (atime_ns, who)
            self._pending.move_to_end(identifier)
            if len(self._pending) > PENDING:
                self._pending.popitem(last=False)

    def forget(self, identifier: ObjectId) -> None:
        """Drop the pending access time: it was set explicitly, or the object is gone."""
        self._pending.pop(identifier, None)

    async def record(self, *, older_than_us: int, most: int = PENDING) -> None:
        """Send up to `most` access times that are so old, the oldest first.

        An access time that the nodes refuse is forgotten.
        """
        due_ns = (await Now() - older_than_us) * NANOSECONDS_PER_MICROSECOND
        for _ in range(most):
            if not self._pending:
                return
            identifier, (atime_ns, who) = next(iter(self._pending.items()))
            if atime_ns > due_ns:
                return
            with suppress(FileSystemError, OperationFailed):
                outcome = await self._metadata.update(
                    (identifier,), ACCESSED, Access(atime_ns), who
                )
                (attributes,) = outcome.attributes
                self._metadata.changed_itself(identifier, attributes, await Now())
            if self._pending.get(identifier, (0, who))[0] == atime_ns:
                del self._pending[identifier]
