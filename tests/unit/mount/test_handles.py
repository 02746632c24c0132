"""The handles of mount.kernel_numbers"""

import errno
from typing import Any

import pytest

from bftfs.errors import FileSystemError
from mount.kernel_numbers import Handle, Handles

FILES: Any = None


def test_a_handle_stands_for_what_was_opened():
    handles: Handles[str] = Handles()
    first = handles.add(Handle(FILES, "first", 7, 5))
    second = handles.add(Handle(FILES, "second", 7, 5))
    assert first != second
    assert handles.get(first).opened == "first"
    assert handles.get(second).inode == 7
    assert len(handles) == 2


def test_a_removed_handles_number_is_not_used_again():
    handles: Handles[str] = Handles()
    number = handles.add(Handle(FILES, "gone", 7, 5))
    assert handles.remove(number).opened == "gone"
    for use in (handles.get, handles.remove):
        with pytest.raises(FileSystemError) as caught:
            use(number)
        assert caught.value.code == errno.EBADF
    assert handles.add(Handle(FILES, "next", 7, 5)) != number
