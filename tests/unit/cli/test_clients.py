"""`bftfs cluster`: whom a new client may act as; clients that are revoked, and listed."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from bftfs import description_files
from bftfs.cli import cluster, local_cluster
from bftfs.cluster import Durability, decode
from bftfs.credentials import ALL_RIGHTS, Grant
from bftfs.data_directory import DataDirectory
from bftfs.errors import UsageError
from bftfs.identifiers import ClientId
from nodes import membership

GROUPS = {"ann": [1000, 27, 100], "bob": [1001, 100]}
UIDS = {1000: "ann", 1001: "bob"}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataDirectory:
    """A cluster on a machine with the users ann and bob; ann runs the commands."""

    def user(uid: int) -> SimpleNamespace:
        return SimpleNamespace(pw_name=UIDS[uid], pw_gid=uid)

    monkeypatch.setattr(pwd, "getpwuid", user)
    monkeypatch.setattr(os, "getgrouplist", lambda name, _: GROUPS[name])
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    made = DataDirectory(tmp_path)
    addresses = [f"unix:/nowhere/{number}" for number in range(6)]
    local_cluster.create_cluster(made, addresses, t=1, b=1, durability=Durability.SYNC)
    return made


def added(directory: DataDirectory, *options: str, name: str = "new") -> tuple[Grant, str]:
    """The grant of a new client, and what the command says."""
    done = CliRunner().invoke(
        cluster.cluster, ["add-client", "--data", str(directory.path), name, *options]
    )
    if done.exception is not None:
        raise done.exception
    (entry,) = (
        entry
        for entry in description_files.load(directory.description).clients
        if entry.name == name
    )
    return entry.grant, done.output


@pytest.mark.parametrize(
    ("options", "grant"),
    [
        ("", Grant(uids=(1000,), gids=(1000, 27, 100))),
        ("--uid 1001", Grant(uids=(1001,), gids=(1001, 100))),
        ("--uid 1001 --uid 1000", Grant(uids=(1001, 1000), gids=(1001, 100, 1000, 27))),
        ("--uid 1001 --gid 5 --gid 6", Grant(uids=(1001,), gids=(5, 6))),
        ("--uid 4242 --gid 5", Grant(uids=(4242,), gids=(5,))),
        ("--gid 5", Grant(uids=(1000,), gids=(5,))),
        ("--uid 0", Grant(uids=(0,))),
        ("--uid 0 --uid 1001", Grant(uids=(0, 1001), gids=(1001, 100))),
        ("--any-uid", ALL_RIGHTS),
        ("--any-uid --read-only", Grant(write=False)),
        ("--any-uid --squash-root", Grant(squash_root=True)),
        ("--uid 1001 --squash-root", Grant(uids=(1001,), gids=(1001, 100), squash_root=True)),
    ],
)
def test_grants(directory: DataDirectory, options: str, grant: Grant) -> None:
    assert added(directory, *options.split())[0] == grant


def test_it_says_what_it_has_granted(directory: DataDirectory) -> None:
    assert "may act as uid 1000, with groups 1000, 27, 100." in added(directory)[1]
    assert (
        "may act as uid any (root as nobody), with groups any."
        in added(directory, "--any-uid", "--squash-root", name="desk")[1]
    )
    shown = CliRunner().invoke(cluster.cluster, ["show", "--data", str(directory.path)]).output
    (row,) = (line for line in shown.splitlines() if " new " in line)
    assert [cell.strip() for cell in row.strip("│ ").split("│")] == [
        "new",
        "1000",
        "1000, 27, 100",
        "yes",
        "50%",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--uid 4242", "no user of this machine has uid 4242: say with --gid"),
        ("--any-uid --uid 1000", "--any-uid covers all users and groups"),
        ("--any-uid --gid 1000", "--any-uid covers all users and groups"),
        ("--uid 0 --squash-root", "root is to act as nobody, and so uid 0 is not one of its uids"),
    ],
)
def test_mistakes(directory: DataDirectory, options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        added(directory, *options.split())
    assert not directory.client_key("new").exists()


def test_root_has_to_say_whom_it_means(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(UsageError, match="`--any-uid` for all users, root included"):
        added(directory)


# --- revoked ----------------------------------------------------------------------------------


def said(directory: DataDirectory, *words: str) -> str:
    """What `bftfs cluster …` says; its mistake, if it is one."""
    done = CliRunner().invoke(
        cluster.cluster, [*words, "--data", str(directory.path)], standalone_mode=False
    )
    if isinstance(done.exception, UsageError):
        return done.exception.message
    assert done.exception is None, done.exception
    return done.output


def test_a_revoked_client_is_remembered_when_its_name_is_given_again(
    directory: DataDirectory,
) -> None:
    added(directory, name="laptop")
    key = directory.client_key("laptop").read_bytes()
    first = description_files.load(directory.description).clients[-1].client.hex()
    assert "Client laptop may not connect any more" in said(directory, "revoke-client", "laptop")
    _, words = added(directory, name="laptop")
    aside = directory.client_key(f"laptop:{first[:12]}")
    assert f"The key of the laptop that was revoked is now {aside}" in words
    assert aside.read_bytes() == key
    description = description_files.load(directory.description)
    [past] = description.past_clients
    assert (past.name, past.client.hex()) == ("laptop", first)
    assert description.clients[-1].client.hex() != first

    listed = {each["id"]: each for each in json.loads(said(directory, "clients", "--json"))}
    assert listed[first]["revoked_s"] >= listed[first]["added_s"] > 0
    assert listed[description.clients[-1].client.hex()]["revoked_s"] is None
    table = said(directory, "clients")
    assert first[:12] in table
    assert "revoked" in table
    assert all(len(line) <= 80 for line in table.splitlines())
    assert first[:12] not in said(directory, "show")

    again = said(directory, "revoke-client", first[:12])
    assert f"client laptop ({first[:12]}) was revoked on 2" in again
    assert "may not connect any more" in said(directory, "revoke-client", "laptop")
    assert len(description_files.load(directory.description).past_clients) == 2
    assert "several clients are called so" in said(directory, "revoke-client", "laptop")


def test_a_key_that_belongs_to_a_present_client_stays(directory: DataDirectory) -> None:
    added(directory, name="laptop")
    key = directory.client_key("laptop").read_bytes()
    again = said(directory, "add-client", "laptop")
    assert "there is a client laptop already: `bftfs cluster tell` tells all nodes of it" in again
    assert directory.client_key("laptop").read_bytes() == key


def test_who_revokes_the_client_of_this_machine_has_to_mean_it(directory: DataDirectory) -> None:
    refused = said(directory, "revoke-client", "local")
    assert "client local is the one with which `bftfs up` mounts on this machine" in refused
    assert "say --yes" in refused
    assert description_files.load(directory.description).past_clients == ()
    assert "may not connect any more" in said(directory, "revoke-client", "local", "--yes")


def test_whom_nobody_knows_cannot_be_revoked(directory: DataDirectory) -> None:
    assert "no client is called so; there are local:" in said(directory, "revoke-client", "nobody")
    assert "there is no such client" in said(directory, "revoke-client", "0f" * 16)


def test_shares_of_the_room(directory: DataDirectory) -> None:
    """The first client has all of it, others half unless told so; nodes go by it at once."""
    assert "may use 50 % of the room" in added(directory)[1]
    assert "may use 20 % of the room" in added(directory, "--share", "20", name="other")[1]
    description = description_files.load(directory.description)
    shares = {each.name: description.share_of(each.client) for each in description.clients}
    assert shares == {"local": 1.0, "new": 0.5, "other": 0.2}
    assert description.share_of(ClientId(b"?" * 16)) == 0.5
    assert {"client_share", "clients"} <= membership._LIVE
    shown = said(directory, "show")
    assert "share of the room" in shown
    assert "20%" in shown


def test_older_descriptions_have_no_shares(directory: DataDirectory) -> None:
    encoded = directory.description.read_text().replace("client_share = 50\n", "")
    encoded = encoded.replace("share = 100\n", "")
    description = decode(encoded.encode(), source="old")
    assert description.share_of(description.clients[0].client) == 1.0
    with pytest.raises(UsageError, match="0 is not a share of the room"):
        replace(description, client_share=0)


@pytest.mark.parametrize("command", ["add-client", "revoke-client"])
def test_who_interrupts_the_telling_hears_that_nodes_may_not_know(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """By then it is signed, and "may not connect any more" is said."""
    added(directory, name="laptop")

    def interrupted(*_: object) -> dict[int, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("bftfs.cli.reach.NodeAccess.announce", interrupted)
    name = "laptop" if command == "revoke-client" else "other"
    done = CliRunner().invoke(cluster.cluster, [command, "--data", str(directory.path), name])
    assert done.exit_code == 1
    assert "it is signed, and nodes may not have heard of it; `bftfs cluster tell`" in done.output
