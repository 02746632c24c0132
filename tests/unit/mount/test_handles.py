"""mount.handles"""

import errno

import pytest

from bftfs.errors import FileSystemError
from mount.handles import Handles


def test_a_handle_stands_for_what_was_opened():
    handles: Handles[str] = Handles()
    first = handles.add("first", inode=7, opener=5)
    second = handles.add("second", inode=7, opener=5)
    assert first != second
    assert handles.get(first).opened == "first"
    assert handles.get(second).inode == 7
    assert len(handles) == 2


def test_a_removed_handles_number_is_not_used_again():
    handles: Handles[str] = Handles()
    number = handles.add("gone", inode=7, opener=5)
    assert handles.remove(number).opened == "gone"
    for use in (handles.get, handles.remove):
        with pytest.raises(FileSystemError) as caught:
            use(number)
        assert caught.value.code == errno.EBADF
    assert handles.add("next", inode=7, opener=5) != number
