"""A running node that replicates a state machine: consensus, storage and transport put together. It knows no mail."""

from __future__ import annotations

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.machine import Applied, Command, Item, NodeDown, NodeUp, Skipped, StateMachine
from smtpraft.cluster.memory import MemoryMachine
from smtpraft.cluster.node import Node
from smtpraft.cluster.ports import free_port
from smtpraft.cluster.settings import NodeOptions, derive_cluster_id
from smtpraft.cluster.status import NodeStatus, PeerStatus
from smtpraft.errors import NotReplicated, OutcomeUnknown, Stopped
from smtpraft.types import NodeId

__all__ = [
    "Applied",
    "Command",
    "Item",
    "MemoryMachine",
    "Node",
    "NodeDown",
    "NodeId",
    "NodeOptions",
    "NodeStatus",
    "NodeUp",
    "NotReplicated",
    "OutcomeUnknown",
    "Peer",
    "PeerStatus",
    "Skipped",
    "StateMachine",
    "Stopped",
    "derive_cluster_id",
    "free_port",
]
