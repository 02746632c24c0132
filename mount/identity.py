"""The key of a client of this machine; apart from the rest, as `bftfs status` needs no more."""

from __future__ import annotations

from bftfs.crypto.keys import Identity, read_identity
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.printable import as_word


def identity_of(directory: DataDirectory, client: str) -> Identity:
    """The identity of the client called `client`; a `UsageError` if its key is not here."""
    key = directory.client_key(client)
    if not key.exists():
        here = sorted(path.stem for path in key.parent.glob("*.key"))
        others = (
            f"keys that are here: {', '.join(here)} (say `--client {here[0]}`, or `-o "
            f"client={here[0]}` to mount)"
            if here
            else "there is none here: copy yours from the administrator's machine"
        )
        raise UsageError(
            f"{as_word(key)}: there is no key of a client named {client}; {others}; or `bftfs "
            "cluster "
            f"add-client --data {as_word(directory.path)} {client}` makes one, where `admin.key` is"
        )
    return read_identity(key)
