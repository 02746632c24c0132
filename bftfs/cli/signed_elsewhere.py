"""Before a command changes the description, it asks nodes for a later one from another machine.

Situation: there may be two machines with `admin.key`, or the files here come from a backup. A
change of an older description would take back what was signed since: admit clients that were
revoked, and forget clients that were added. So a command that changes the description asks the
nodes first. It believes what the administrator has signed, and that every revocation holds, and
every right that was taken without the latest description's knowing of it: nodes do the same
(`nodes.membership`). It takes up the key epochs that others have begun. The new description names
those that it was made from, and so nodes see what it knows of. A node that lies can keep something
back, and invent nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bftfs import description_files
from bftfs.cli.epochs import with_keys_settled
from bftfs.cli.reach import NodeAccess
from bftfs.cluster import ClusterDescription, PastClient
from bftfs.data_directory import DataDirectory
from bftfs.description_files import SignedDescription, signature_path
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId
from bftfs.printable import as_word


def description_to_change(directory: DataDirectory) -> ClusterDescription:
    """The latest description: that of the files here, or a later one of a node, now here, too.

    Without clients who were revoked in any of them, with the rights that all grant of which it
    does not know, and with the key epochs of all.
    """
    here = description_files.read(directory.description)
    known = _of_nodes(directory, here.description)
    latest = max((here, *known), key=lambda each: each.description.serial)
    if latest is not here:
        _adopt(directory, here, latest)
    elif any(_is_other(here.description, each.description) for each in known):
        other = _put_beside(directory, "other", known)
        click.echo(
            f"bftfs: nodes have another description with number {here.description.serial}, which "
            f"was signed on another machine: {as_word(other)}; clients that it revokes are revoked "
            "here, too; see what else is in it, make these changes here as well, and run `bftfs "
            "cluster sign`",
            err=True,
        )
    seen = [each.description for each in (here, *known)]
    narrowed = _narrowed(latest.description, latest.description, seen)
    described = with_keys_settled(directory, _without_revoked(narrowed, seen), seen)
    return replace(described, **_knowing(latest.description, seen))


def adopt_later(directory: DataDirectory) -> SignedDescription:
    """The latest description, which is in the files here from now on."""
    here = description_files.read(directory.description)
    latest = max(
        (here, *_of_nodes(directory, here.description)), key=lambda each: each.description.serial
    )
    if latest is not here:
        _adopt(directory, here, latest)
    return latest


def edited_description(directory: DataDirectory) -> ClusterDescription:
    """The description that was edited by hand, to be signed: with the next number.

    Clients that were taken out of it are remembered as revoked. Raises UsageError if it was made
    from an older one than nodes have.
    """
    edited = description_files.load_unsigned(directory.description)
    known = [*_of_nodes(directory, edited), *_signed_here(directory, edited)]
    latest = max((each.description.serial for each in known), default=0)
    if latest > edited.serial:
        other = _put_beside(directory, "other", known)
        raise UsageError(
            f"{as_word(directory.description)}: was made from number {edited.serial} of the "
            f"descriptions, and nodes have number {latest}, signed on another machine (or this one "
            f"has signed it since), which is now {as_word(other)}: make the changes in that, copy "
            f"it and {as_word(signature_path(other))} over this one and its signature, and sign it"
        )
    signed = replace(edited, serial=edited.serial + 1)
    lines: list[bytes] = []
    with suppress(OSError):
        lines = signature_path(directory.description).read_bytes().split()
    seen = [each.description for each in known]
    for each in known:
        if each.description.serial == edited.serial and each.signature in lines:
            signed = _with_removed(signed, each.description)
            signed = _narrowed(signed, each.description, seen)
            signed = replace(signed, **_knowing(each.description, seen))
            break
    else:
        click.echo(
            f"bftfs: it is not known here what {as_word(directory.description)} was made from: "
            "clients taken out of it are not called revoked, and may have the present key; rights "
            "that nodes have heard of hold beside it, until you see that it is right and sign it "
            "again",
            err=True,
        )
        signed = replace(signed, follows=(), follows_from=0)  # it knows of nothing
    return with_keys_settled(directory, _without_revoked(signed, seen), seen)


# -----------------------------------------------------------------------------------------------


def _of_nodes(directory: DataDirectory, mine: ClusterDescription) -> list[SignedDescription]:
    """The descriptions that nodes have and this machine's administrator has signed, each once."""
    with NodeAccess(directory, mine) as access:
        found = {each.signature: each for each in access.descriptions()}
    for number in range(mine.n):  # nodes of this machine that do not run
        with suppress(UsageError):
            kept = directory.node(number).description
            each = description_files.read(kept, administrator=mine.administrator)
            found[each.signature] = each
    return [each for each in found.values() if each.description.cluster_id == mine.cluster_id]


def _signed_here(directory: DataDirectory, mine: ClusterDescription) -> list[SignedDescription]:
    """The description as it was signed here last, if it is there."""
    with suppress(UsageError):
        path = description_files.as_signed(directory.description)
        found = description_files.read(path, administrator=mine.administrator)
        if found.description.cluster_id == mine.cluster_id:
            return [found]
    return []


def _knowing(made_from: ClusterDescription, seen: Iterable[ClusterDescription]) -> dict[str, Any]:
    """The fields by which a description names those that its signer knew: this one, and `seen`."""
    known = made_from.following(seen)
    return {"follows": known.follows, "follows_from": known.follows_from}


def _narrowed(
    description: ClusterDescription,
    made_from: ClusterDescription,
    seen: Iterable[ClusterDescription],
) -> ClusterDescription:
    """The description, made from another one, with what those grant of which this did not know.

    What was changed by hand in between stays as it is.
    """
    before = {each.client: (each.grant, each.share) for each in made_from.clients}
    untouched = {
        each.client
        for each in description.clients
        if before.get(each.client) == (each.grant, each.share)
    }
    for other in seen:
        if made_from.knows_of(other):
            continue
        pairs = list(zip(description.clients, description.narrowed_by(other).clients, strict=True))
        names = [each.name for each, less in pairs if each != less and each.client in untouched]
        clients = tuple(less if each.client in untouched else each for each, less in pairs)
        description = replace(description, clients=clients)
        if names:
            click.echo(
                f"Number {other.serial} was signed on another machine, without number "
                f"{made_from.serial} knowing of it. Only the rights that both grant: "
                f"{', '.join(names)}."
            )
    return description


def _named(description: ClusterDescription) -> set[ClientId]:
    """The clients that a description names, present and past."""
    past = {each.client for each in description.past_clients}
    return past | {each.client for each in description.clients}


def _is_other(mine: ClusterDescription, theirs: ClusterDescription) -> bool:
    return mine.serial == theirs.serial and mine.digest != theirs.digest


def _put_beside(directory: DataDirectory, suffix: str, known: Sequence[SignedDescription]) -> Path:
    """Write the latest of these descriptions beside the one here; its path."""
    latest = max(known, key=lambda each: each.description.serial)
    path = directory.description.with_suffix(f".{suffix}.toml")
    description_files.keep(path, latest)
    return path


def _adopt(directory: DataDirectory, here: SignedDescription, later: SignedDescription) -> None:
    """Replace the files here by a later description, and say so."""
    before = _put_beside(directory, "before", [here])
    description_files.adopt(directory.description, later)
    mine, theirs = here.description, later.description
    click.echo(
        f"Nodes have number {theirs.serial} of the descriptions, signed on another machine: "
        f"{as_word(directory.description)} is that one now. It was number {mine.serial}, which is "
        f"in {as_word(before)}."
    )
    known = _named(theirs)
    lost = [each.name for each in mine.clients if each.client not in known]
    if lost:
        click.echo(
            f"bftfs: it does not have {', '.join(lost)}: add those that are to stay with `bftfs "
            "cluster add-client`",
            err=True,
        )


def _without_revoked(
    description: ClusterDescription, others: Sequence[ClusterDescription]
) -> ClusterDescription:
    """The description without those that others call revoked; its serial stays."""
    for other in others:
        gone = {past.client: past for past in other.past_clients}
        names = [each.name for each in description.clients if each.client in gone]
        description = description.with_revocations_of(other)
        if names:
            click.echo(f"Revoked elsewhere, and so here, too: {', '.join(names)}.")
    return description


def _with_removed(
    description: ClusterDescription, before: ClusterDescription
) -> ClusterDescription:
    """The description, which remembers as revoked the clients that only `before` listed."""
    known = _named(description)
    now_s = int(time.time())
    removed = tuple(
        PastClient(each.name, each.client, each.added_s, now_s)
        for each in before.clients
        if each.client not in known
    )
    return description.with_revocations_of(replace(before, clients=(), past_clients=removed))
