"""Reaches nodes for upkeep: those of this machine over their control sockets, others by channel.

A node on another machine obeys the administrator's key (`admin.key` of the data directory). So on
the administrator's machine the commands work for all nodes, and on another one for its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Self, TypeAlias, TypeVar

from bftfs.addresses import UnixAddress, parse_address
from bftfs.asking.ask import ask_all
from bftfs.asking.peers import Peers
from bftfs.asking.quorum import ThresholdQuorums
from bftfs.asking.refusal import Refused
from bftfs.cluster import ClusterDescription
from bftfs.conversation import Delivery
from bftfs.crypto.keys import Identity, read_identity
from bftfs.data_directory import DataDirectory
from bftfs.description_files import SignedDescription, verified
from bftfs.envelope import (
    REPLIES,
    Announcement,
    DescriptionReply,
    DescriptionRequest,
    UpkeepReply,
    UpkeepRequest,
)
from bftfs.errors import NotAdmitted, UsageError
from bftfs.identifiers import NodeId
from bftfs.limits import SECOND_US
from bftfs.printable import as_word
from bftfs.runtime.blocking import BlockingNetwork
from nodes.control import ControlFailed, NoControlSocket, send_request

_PATIENCE_US = SECOND_US  # for nodes that cannot be connected to
_LONGER_US = 5 * SECOND_US  # for those that can, and are slow
_NOT_ADMITTED = NotAdmitted.__name__  # the beginning of that reason for a lost connection

_NOT_RUNNING = "does not run on this machine"

_Request: TypeAlias = UpkeepRequest | Announcement | DescriptionRequest
_Reply = TypeVar("_Reply", UpkeepReply, DescriptionReply)

Replies = dict[int, UpkeepReply | str]  # by node; a sentence if the node did not obey


def is_local(directory: DataDirectory, description: ClusterDescription, node: int) -> bool:
    """True if the node runs on this machine, or has run here."""
    address, place = description.members[node].address, directory.node(node)
    # A node that has lost its store still has its log, which says so.
    return address.startswith("unix:") or place.store.exists() or place.log.exists()


def what_to_start(*, here: Sequence[int], away: Sequence[int]) -> str:
    """The advice to start silent nodes, here and on other machines; empty if there are none."""
    said = ["`bftfs up` starts local nodes that are down"] if here else []
    if away:
        names = ", ".join(map(str, away))
        which, machine, address, is_ = ("node", "its machine", "its address", "is")
        if len(away) > 1:
            which, machine, address, is_ = ("nodes", "their machines", "their addresses", "are")
        said.append(
            f"start {which} {names} on {machine} (`bftfs node run`, or the service there), and see "
            f"that {address} in cluster.toml {is_} right and can be reached from here"
        )
    return "; ".join(said)


class NodeAccess:
    """Sends upkeep requests to nodes. One on another machine that is silent is not asked again."""

    def __init__(self, directory: DataDirectory, description: ClusterDescription) -> None:
        self._directory = directory
        self._description = description
        self._administrator: Identity | None = None
        self.why_not = ""  # why the administrator's key cannot be used
        try:
            administrator = read_identity(directory.administrator_key)
        except UsageError as mistake:
            self.why_not = mistake.message
        else:
            if administrator.public_key == description.administrator:
                self._administrator = administrator
            else:
                self.why_not = (
                    f"{as_word(directory.administrator_key)} is not the key of this cluster's "
                    "administrator"
                )
        self._network: BlockingNetwork | None = None
        self._silent: dict[int, str] = {}  # nodes that did not obey, and why
        self._down: dict[bool, list[int]] = {True: [], False: []}  # of these: local ones, others

    @property
    def reaches_other_machines(self) -> bool:
        """True if the administrator's key is here."""
        return self._administrator is not None

    @property
    def next_step(self) -> str:
        """The advice to start the nodes that do not seem to run; empty if all run."""
        return what_to_start(here=self._down[True], away=self._down[False])

    def ask(self, nodes: Iterable[int], request: UpkeepRequest) -> Replies:
        """The answer of each of these nodes."""
        replies: Replies = {}
        away = []
        for node in nodes:
            if node in self._silent:
                replies[node] = self._silent[node]
                continue
            try:
                replies[node] = send_request(self._directory.node(node).control, request)
            except NoControlSocket:
                away.append(node)
            except ControlFailed as failure:
                replies[node] = str(failure)
        return replies | self.ask_over_channels(dict.fromkeys(away, request)) if away else replies

    def announce(self, signed: SignedDescription) -> dict[int, str]:
        """Bring a description to all nodes; those that have not taken it, each with the reason."""
        announcement = Announcement(signed.encoded, signed.signature)
        replies = self.ask_over_channels(dict.fromkeys(range(signed.description.n), announcement))
        return {node: reply for node, reply in replies.items() if isinstance(reply, str)}

    def descriptions(self) -> list[SignedDescription]:
        """The descriptions of the nodes that answer, as far as their signatures are right.

        The latest one of each, and those that it keeps beside that.
        """
        if self._administrator is None:
            return []
        found: dict[bytes, SignedDescription] = {}
        others: dict[bytes, list[int]] = {}  # by digest: the nodes that have it
        requests = dict.fromkeys(range(self._description.n), DescriptionRequest())
        for node, reply in self._ask(requests, DescriptionReply).items():
            if not isinstance(reply, str):
                found |= self._verified(node, reply)
                for digest in reply.others:
                    others.setdefault(digest, []).append(node)
        for digest, nodes in others.items():
            for node in nodes:  # not again if it has named one that it did not send
                if digest not in found and node not in self._silent:
                    answers = self._ask({node: DescriptionRequest(digest)}, DescriptionReply)
                    for reply in answers.values():
                        found |= {} if isinstance(reply, str) else self._verified(node, reply)
        return list(found.values())

    def _verified(self, node: int, reply: DescriptionReply) -> dict[bytes, SignedDescription]:
        """What a node has sent, by its digest, if the administrator has signed it."""
        assert self._administrator is not None
        try:
            each = verified(
                reply.encoded,
                reply.signature,
                administrator=self._administrator.public_key,
                source=f"node {node}'s",
            )
        except UsageError:
            return {}
        return {each.description.digest: each}

    @property
    def stopped(self) -> tuple[int, ...]:
        """The nodes that were found not to run, and can run nowhere but on this machine."""
        members = self._description.members
        return tuple(node for node in self._down[True] if members[node].address.startswith("unix:"))

    def close(self) -> None:
        """Close the connections."""
        if self._network is not None:
            self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask_over_channels(self, requests: Mapping[int, UpkeepRequest | Announcement]) -> Replies:
        """The answer of each node to its request; also of those on this machine."""
        return self._ask(requests, UpkeepReply)

    # -----------------------------------------------------------------------------------------

    def _ask(self, requests: Mapping[int, _Request], kind: type[_Reply]) -> dict[int, _Reply | str]:
        """Ask nodes over channels, for replies of this kind."""
        nodes = list(requests)
        if self._administrator is None:
            for node in nodes:
                if is_local(self._directory, self._description, node):
                    self._silent[node] = _NOT_RUNNING
                    self._down[True].append(node)
                else:
                    self._silent[node] = (
                        "is on another machine, where only the cluster's administrator reaches it: "
                        f"{self.why_not}"
                    )
            return {node: self._silent[node] for node in nodes}
        replies: dict[int, _Reply | str] = {}
        for node in nodes:
            address = parse_address(self._description.members[node].address)
            if isinstance(address, UnixAddress) and not os.path.exists(address.path):
                self._down[True].append(node)
                self._silent[node] = replies[node] = _NOT_RUNNING
        nodes = [node for node in nodes if node not in replies]
        if not nodes:
            return replies
        if self._network is None:
            self._network = BlockingNetwork(
                self._description, self._administrator, decode=REPLIES.decode
            )
        peers = Peers(ThresholdQuorums(self._description.query_update))
        ask, links = self._network.perform, self._network.links
        sent = {NodeId(node): requests[node] for node in nodes}
        answers = ask(_answers(peers, sent, kind, _PATIENCE_US))
        slow = sent.keys() - answers.keys() - dict(links.unreachable()).keys()
        if slow:
            answers |= ask(_answers(peers, {node: sent[node] for node in slow}, kind, _LONGER_US))
        why = dict(links.unreachable())
        for node in nodes:
            answer = answers.get(NodeId(node))
            if isinstance(answer, UpkeepReply) and answer.error:
                replies[node] = f"says: {answer.error}"
            elif answer is not None and not isinstance(answer, Refused):
                replies[node] = answer
            else:
                sentence = self._sentence(node, answer, why.get(NodeId(node), ""))
                self._silent[node] = replies[node] = sentence
        return replies

    def _sentence(self, node: int, refused: Refused | None, why: str) -> str:
        """Why a node did not answer, or refused."""
        if why.startswith(_NOT_ADMITTED):
            return (
                "does not take the administrator's commands: it runs an older bftfs; update and "
                "restart it there"
            )
        if refused is not None:
            return f"refuses: {refused.reason}"
        if not why:
            return f"does not answer within {_LONGER_US // SECOND_US} s; see its log"
        local = is_local(self._directory, self._description, node)
        self._down[local].append(node)
        if local:
            return _NOT_RUNNING
        return f"cannot be reached at {self._description.members[node].address} ({why})"


async def _answers(
    peers: Peers, requests: Mapping[NodeId, _Request], kind: type[_Reply], patience_us: int
) -> dict[NodeId, _Reply | Refused]:
    def judge(delivery: Delivery, _now_us: int) -> _Reply | Refused | None:
        message = delivery.message
        return message if isinstance(message, (kind, Refused)) else None

    return await ask_all(peers, requests, judge, patience_us=patience_us)
