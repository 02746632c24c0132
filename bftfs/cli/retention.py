"""`bftfs retention`: which versions are kept once they are older than the detection window."""

from __future__ import annotations

import errno
import json
import os
from functools import partial

import click

from bftfs.cli.command_session import CommandSession, path_argument, session_at
from bftfs.cli.options import json_option
from bftfs.conversation import Together
from bftfs.errors import FileSystemError, UsageError
from bftfs.identifiers import ObjectId
from bftfs.retention import Policy, format_duration, parse_policy

_TOGETHER = 16


@click.group()
def retention() -> None:
    """Choose which old versions are kept. Versions within the detection window always are."""


@retention.command()
@path_argument
@json_option
def show(path: str, as_json: bool) -> None:
    """The policy of a file or directory."""
    with session_at(path) as session:
        located = session.locate(path)
        policy = session.perform(session.history.retention(located.identifier, session.who))
        window = format_duration(session.description.window_us)
    if as_json:
        click.echo(json.dumps({"path": located.shown, "policy": str(policy), "window": window}))
        return
    click.echo(f"{located.shown}: {policy}")
    click.echo(f"the detection window is {window}: younger versions are always kept")


@retention.command(name="set")
@path_argument
@click.argument("policy")
@click.option("--only", is_flag=True, help="Leave objects that are already in PATH alone.")
def set_(path: str, policy: str, only: bool) -> None:
    """Set the POLICY of PATH, of all objects in it, and of those that will be made in it.

    A policy is a list of all, hourly, daily and weekly, each with the age up to which it holds, or
    without one: `all 30d, hourly 60d, daily 1y, weekly`. `none` (or 0) keeps only the detection
    window. Without a policy, all versions are kept until a node's history pool is full. A change
    takes effect once the detection window has passed.
    """
    chosen = parse_policy(policy)
    with session_at(path) as session:
        located = session.locate(path)
        if located.time_us is not None:
            raise UsageError(f"{located.shown}: the past cannot be changed; name the path alone")
        window_us = session.description.window_us
        changed = [located.identifier]
        if located.attributes.is_directory and not only:
            found = session.tree(located).values()
            changed = list(dict.fromkeys(node.identifier for node in found))
        refused = _apply(session, changed, chosen)
    done = len(changed) - refused
    click.echo(f"{located.shown}: {chosen} ({done} objects)")
    if chosen.longest_us is not None and chosen.longest_us < window_us:
        click.echo(
            f"the detection window is {format_duration(window_us)}: younger versions are kept "
            "whatever the policy says"
        )
    if refused:
        raise UsageError(
            f"{refused} objects are not yours and keep their policy; run this as their owner",
            exit_code=1,
        )


def _apply(session: CommandSession, objects: list[ObjectId], policy: Policy) -> int:
    """Set the policy of all `objects`. Gives the number of refusals."""
    refused = 0

    async def give(identifier: ObjectId) -> bool:
        try:
            await session.history.set_retention(identifier, policy, session.who)
        except FileSystemError as refusal:
            if refusal.code not in {errno.EPERM, errno.ESTALE}:
                raise UsageError(os.strerror(refusal.code), exit_code=1) from None
            return refusal.code == errno.ESTALE  # it is gone meanwhile
        return True

    async def give_all(batch: list[ObjectId]) -> int:
        given: tuple[bool, ...] = await Together(tuple(partial(give, each) for each in batch))
        return given.count(False)

    for at in range(0, len(objects), _TOGETHER):
        refused += session.perform(give_all(objects[at : at + _TOGETHER]))
    return refused
