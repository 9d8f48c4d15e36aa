"""Who is at the other end of a connection: the first messages on it, before any frame.

Bytes, big endian. Each message: `magic 8 = "SMTPRAFT" | kind u8 | size u16 | body`, size at most 512.

    dialler                                   acceptor
    1 HELLO      ────────────────────────────▶  version_min u16 | version_max u16 | channel u8 | auth u8 | cluster_id 16
                                                | incarnation u64 | nonce 32 | own id | id of the node it wants
                                                | directory | wanted directory u64 | own address | dialled address
      ◀──────────────────────────── 2 CHALLENGE  version u16 | auth u8 | incarnation u64 | nonce 32 | own id | directory
    3 PROOF      ────────────────────────────▶  HMAC-SHA256(secret, "…dialler…" | HELLO | CHALLENGE)
      ◀──────────────────────────── 4 ACCEPT     HMAC-SHA256(secret, "…acceptor…" | HELLO | CHALLENGE | PROOF)
    frames       ════════════════════════════▶
    either side, instead: 5 REFUSE               reason u8 | text (UTF-8), and the connection is closed

An id is `length u8 | ASCII`; so is an address, empty if it is not known. Bytes after the last known field of HELLO and
CHALLENGE are ignored, but proven too. A node of a release without directories sends nothing after the ids.

`incarnation` is the process's, `directory` (`incarnation u64 | takes part u8`) that of its data directory: whoever has
lost its disk is somebody else, whatever it calls itself. Each side refuses another directory than the one that it knows
the node by. `wanted directory` 0: the dialler takes any.

Channel 255 asks who is there, and of which cluster: whoever knows the secret is told, in one frame (see `asking.py`).

- The secret never travels. Each side proves it over both nonces and everything said before, so an answer recorded
  earlier is worth nothing, nor can a version, a channel or an id be changed on the way. The labels differ by direction,
  so a node's own proof cannot be reflected to it.
- The dialler proves first: who merely reaches our port gets nothing that a guess at the secret could be checked with.
- `auth` 0 = no secret (all addresses are loopback, see `secret.py`), 1 = HMAC. Both sides must want the same: no way
  down.
- What this does not do: hide or protect the frames that follow from somebody who controls the network between. That is
  the work of TLS.

No I/O and no clock here: `receive(bytes)` returns the bytes to send. The caller keeps the deadline and the connection.
"""

from __future__ import annotations

import enum
import hmac
import secrets
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from smtpraft.errors import SmtpRaftError
from smtpraft.types import NodeId, parse_node_id

VERSION_MIN: Final = 1
VERSION_MAX: Final = 1
"""The protocol versions that this release speaks: frames and messages as in `wire.py`."""

ASK: Final = 255
"""Instead of a channel: the dialler wants no connection but an answer, from whoever it is."""

HANDSHAKE_TIMEOUT_S: Final = 5.0  # two round trips; anything slower is not a peer that could take part in an election

_MAGIC: Final = b"SMTPRAFT"
_HEADER: Final = struct.Struct(">8sBH")
_BODY_BYTES_MAX: Final = 512
_HELLO: Final = struct.Struct(">HHBB16sQ32s")
_CHALLENGE: Final = struct.Struct(">HBQ32s")
_DIRECTORY: Final = struct.Struct(">QB")
_U64: Final = struct.Struct(">Q")
_ADDRESS_BYTES_MAX: Final = 100  # so that a HELLO stays below the limit; a longer one is not told
_NONCE_BYTES: Final = 32
_PROOF_BYTES: Final = 32
_REFUSAL_TEXT_BYTES_MAX: Final = 240

_DIALLER_LABEL: Final = b"smtpraft handshake 1: the dialler knows the secret\0"
_ACCEPTOR_LABEL: Final = b"smtpraft handshake 1: the acceptor knows the secret\0"

_REPLACE: Final = "bring that one back, or run smtpraft member replace {}"

_AUTH_NONE: Final = 0
_AUTH_HMAC: Final = 1


class Channel(enum.IntEnum):
    """What a connection is for. A node keeps one of the first two to each peer."""

    CONTROL = 0
    """Heartbeats and other small frames that must never wait behind bulk."""
    BULK = 1
    """Everything else."""
    SNAPSHOT = 2
    """One snapshot; dialled for it, and closed after it."""


KEPT_CHANNELS: Final = (Channel.CONTROL, Channel.BULK)


class Kind(enum.IntEnum):
    """Handshake messages."""

    HELLO = 1
    CHALLENGE = 2
    PROOF = 3
    ACCEPT = 4
    REFUSE = 5


class Reason(enum.IntEnum):
    """Why a connection was refused."""

    GARBAGE = 1
    VERSION = 2
    CLUSTER = 3
    WRONG_NODE = 4
    UNKNOWN_NODE = 5
    SELF = 6
    SECRET = 7
    CHANNEL = 8
    DIRECTORY = 9
    UNSPECIFIED = 255
    """A reason of a later version."""


class Refused(SmtpRaftError):
    """The handshake failed. `by_peer`: the other side says so; otherwise `answer` tells it why before we close."""

    def __init__(self, reason: Reason, text: str, *, by_peer: bool = False, answer: bytes = b"") -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.by_peer = by_peer
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Identity:
    """What a node says of itself, and what it demands of others."""

    node: NodeId
    cluster_id: bytes
    incarnation: int
    secret: bytes | None = field(repr=False)
    version_min: int = VERSION_MIN
    version_max: int = VERSION_MAX
    directory: int = 0
    """The incarnation of its data directory; 0 before directories had one."""
    takes_part: bool = False
    """Is it more than fresh: may it vote?"""
    address: str = ""
    """Where others reach it, HOST:PORT, as far as it knows."""

    def __post_init__(self) -> None:
        if len(self.cluster_id) != 16:
            raise ValueError(f"a cluster id has 16 bytes, not {len(self.cluster_id)}")
        if not 0 <= self.incarnation < 1 << 64:
            raise ValueError(f"incarnation {self.incarnation} does not fit into 64 bits")
        if not 0 < self.version_min <= self.version_max < 1 << 16:
            raise ValueError(f"versions {self.version_min} to {self.version_max}")

    @property
    def auth(self) -> int:
        return _AUTH_NONE if self.secret is None else _AUTH_HMAC


@dataclass(frozen=True, slots=True)
class Established:
    """What both sides agreed on. `rest` came after the handshake in the same read: the first bytes of frames."""

    peer: NodeId
    incarnation: int
    version: int
    channel: Channel
    rest: bytes
    directory: int = 0
    """Of the peer's data directory; 0: it did not say."""
    takes_part: bool = False
    """Was the peer more than fresh when it connected?"""
    wanted: int = 0
    """Accepted: the directory that the peer wants, 0 if it takes any. Else ours is the one by which it knows us."""
    address: str = ""
    """Accepted: where the peer is reached, as it says."""
    dialled: str = ""
    """Accepted: where the peer reaches us."""
    asks: bool = False
    """Accepted: the peer only wants to know who is here."""
    removed_index: int = 0
    """Accepted: the peer was removed from the cluster by this entry, and need only be told so."""


class Dialler:
    """The side that opened the connection and will send on it."""

    def __init__(
        self,
        identity: Identity,
        peer: NodeId,
        channel: Channel | int,
        *,
        wanted: int = 0,
        dialled: str = "",
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`wanted`: the data directory by which we know the peer, 0 for any; `dialled`: the address we used."""
        self.established: Established | None = None
        self._identity = identity
        self._peer = peer
        self._channel = channel
        self._wanted = wanted
        self._directory = 0
        self._takes_part = False
        self._buffer = b""
        more = b""
        if identity.directory:
            more = _pack_directory(identity) + _U64.pack(wanted) + _pack_address(identity.address, dialled)
        self._hello = _message(
            Kind.HELLO,
            _HELLO.pack(
                identity.version_min,
                identity.version_max,
                channel,
                identity.auth,
                identity.cluster_id,
                identity.incarnation,
                random_bytes(_NONCE_BYTES),
            )
            + _pack_id(identity.node)
            + _pack_id(peer)
            + more,
        )
        self._challenge = b""
        self._proof = b""
        self._incarnation = 0
        self._version = 0

    def start(self) -> bytes:
        """Return the bytes to send first."""
        return self._hello

    def receive(self, data: bytes) -> bytes:
        """Return the answer to `data`, perhaps nothing. Once the peer has accepted us, `established` is set.

        Raises:
            Refused: we refuse, or the peer does.
        """
        assert self.established is None
        self._buffer += data
        if not self._challenge:
            challenge = self._take(Kind.CHALLENGE)
            if challenge is None:
                return b""
            self._check_challenge(challenge)
            self._challenge = challenge
            self._proof = _message(
                Kind.PROOF, _prove(self._identity.secret, _DIALLER_LABEL, self._hello, self._challenge)
            )
            answer = self._proof
        else:
            answer = b""
        accept = self._take(Kind.ACCEPT)
        if accept is not None:
            expected = _prove(self._identity.secret, _ACCEPTOR_LABEL, self._hello, self._challenge, self._proof)
            if not hmac.compare_digest(accept[_HEADER.size :], expected):
                raise _refusal(Reason.SECRET, f"node {self._peer} does not know the cluster's secret")
            self.established = Established(
                self._peer,
                self._incarnation,
                self._version,
                Channel(self._channel) if self._channel != ASK else Channel.CONTROL,
                self._buffer,
                self._directory,
                self._takes_part,
            )
            self._buffer = b""
        return answer

    def _take(self, kind: Kind) -> bytes | None:
        message, self._buffer = _split(self._buffer, kind)
        return message

    def _check_node(self, node: NodeId) -> None:
        own = self._identity
        if node == own.node:
            raise _refusal(Reason.SELF, f"the address of {self._peer} leads to a node that is {own.node}, as we are")
        if node != self._peer:
            raise _refusal(Reason.WRONG_NODE, f"dialled {self._peer}, but {node} answered")

    def _check_challenge(self, message: bytes) -> None:
        own = self._identity
        body = message[_HEADER.size :]
        if len(body) < _CHALLENGE.size:
            raise _refusal(Reason.GARBAGE, f"a challenge of {len(body)} bytes")
        version, auth, incarnation, _ = _CHALLENGE.unpack_from(body)
        node, end = _unpack_id(body, _CHALLENGE.size)
        directory, takes_part, _ = _unpack_directory(body, end)
        self._check_node(node)
        if not own.version_min <= version <= own.version_max:
            raise _refusal(
                Reason.VERSION, f"{node} chose version {version}, we speak {own.version_min} to {own.version_max}"
            )
        _check_auth(own, auth, node)
        _check_directory(node, directory, self._wanted)
        self._incarnation = incarnation
        self._version = version
        self._directory = directory
        self._takes_part = takes_part


class Asker(Dialler):
    """A dialler that does not know whom it will find, nor in which cluster; `established.peer` says."""

    def __init__(self, identity: Identity, *, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> None:
        super().__init__(identity, identity.node, ASK, random_bytes=random_bytes)

    def _check_node(self, node: NodeId) -> None:
        self._peer = node


class Acceptor:
    """The side that was dialled and will receive.

    `peers` are the nodes that may connect, with the incarnation of the data directory that each must have (0: any).
    Others, and those with another directory, may if they want the very directory that this node has: a log told them of
    it, and that is longer than the one that told this node. `removed` are nodes that
    were members with that directory, and the index of the entry that removed each: they are to be told.
    """

    def __init__(
        self,
        identity: Identity,
        peers: Mapping[NodeId, int],
        removed: Mapping[tuple[NodeId, int], int] | None = None,
        *,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.established: Established | None = None
        self.claimed: NodeId | None = None
        """Who the other side says it is, for the log; proven only once `established`."""
        self._identity = identity
        self._peers = peers
        self._removed = removed or {}
        self._random_bytes = random_bytes
        self._buffer = b""
        self._hello = b""
        self._challenge = b""
        self._incarnation = 0
        self._version = 0
        self._channel = Channel.CONTROL
        self._directory = 0
        self._takes_part = False
        self._wanted = 0
        self._addresses = ("", "")
        self._asks = False
        self._removed_index = 0

    def start(self) -> bytes:
        """Return the bytes to send first: none, the dialler begins."""
        return b""

    def receive(self, data: bytes) -> bytes:
        """Return what to send in answer to `data`, perhaps nothing. Once the peer is proven, `established` is set.

        Raises:
            Refused: we refuse, or the peer does.
        """
        assert self.established is None
        self._buffer += data
        if not self._hello:
            hello, self._buffer = _split(self._buffer, Kind.HELLO)
            if hello is None:
                return b""
            self._check_hello(hello)
            self._hello = hello
            own = self._identity
            body = _CHALLENGE.pack(
                self._version, own.auth, own.incarnation, self._random_bytes(_NONCE_BYTES)
            ) + _pack_id(own.node)
            if own.directory:
                body += _pack_directory(own)
            self._challenge = _message(Kind.CHALLENGE, body)
            # Whatever follows HELLO now was sent before our nonce was known, and so cannot be a valid proof.
            return self._challenge
        proof, self._buffer = _split(self._buffer, Kind.PROOF)
        if proof is None:
            return b""
        assert self.claimed is not None
        expected = _prove(self._identity.secret, _DIALLER_LABEL, self._hello, self._challenge)
        if not hmac.compare_digest(proof[_HEADER.size :], expected):
            raise _refusal(Reason.SECRET, f"{self.claimed} and {self._identity.node} do not have the same secret")
        self.established = Established(
            self.claimed,
            self._incarnation,
            self._version,
            self._channel,
            self._buffer,
            self._directory,
            self._takes_part,
            self._wanted,
            *self._addresses,
            asks=self._asks,
            removed_index=self._removed_index,
        )
        self._buffer = b""
        return _message(
            Kind.ACCEPT, _prove(self._identity.secret, _ACCEPTOR_LABEL, self._hello, self._challenge, proof)
        )

    def _check_hello(self, message: bytes) -> None:
        own = self._identity
        body = message[_HEADER.size :]
        if len(body) < _HELLO.size:
            raise _refusal(Reason.GARBAGE, f"a hello of {len(body)} bytes")
        version_min, version_max, channel, auth, cluster_id, incarnation, _ = _HELLO.unpack_from(body)
        node, end = _unpack_id(body, _HELLO.size)
        wanted, end = _unpack_id(body, end)
        self.claimed = node
        version = min(version_max, own.version_max)
        if version < max(version_min, own.version_min):
            raise _refusal(
                Reason.VERSION,
                f"no common protocol version: {own.node} speaks {own.version_min} to {own.version_max}, "
                f"{node} speaks {version_min} to {version_max}",
            )
        _check_auth(own, auth, node)
        self._incarnation = incarnation
        self._version = version
        if channel == ASK:
            self._asks = True
            return
        try:
            self._channel = Channel(channel)
        except ValueError:
            raise _refusal(Reason.CHANNEL, f"{node} wants channel {channel}, which {own.node} does not have") from None
        if cluster_id != own.cluster_id:
            raise _refusal(
                Reason.CLUSTER,
                f"{node} belongs to cluster {cluster_id.hex()}, {own.node} to {own.cluster_id.hex()} (cluster.name)",
            )
        if node == own.node:
            raise _refusal(Reason.SELF, f"{node} dialled itself, or two nodes are called so")
        if wanted != own.node:
            raise _refusal(Reason.WRONG_NODE, f"{node} wants {wanted}, but this is {own.node}")
        directory, takes_part, end = _unpack_directory(body, end)
        wanted_directory = 0
        if directory:
            if len(body) < end + _U64.size:
                raise _refusal(Reason.GARBAGE, f"a hello of {len(body)} bytes")
            (wanted_directory,) = _U64.unpack_from(body, end)
            self._addresses = _unpack_addresses(body, end + _U64.size)
        if wanted_directory and wanted_directory != own.directory:
            raise _refusal(
                Reason.DIRECTORY,
                f"{node} knows {own.node} with data directory {wanted_directory:016x}, this one is "
                f"{own.directory:016x}: {_REPLACE.format(own.node)}",
            )
        self._removed_index = self._removed.get((node, directory), 0)
        if self._removed_index:
            return
        if node not in self._peers and not wanted_directory:
            raise _refusal(
                Reason.UNKNOWN_NODE,
                f"{own.node} does not know {node}: it is not among its peers, nor a member (smtpraft member add)",
            )
        if not wanted_directory:
            _check_directory(node, directory, self._peers.get(node, 0))
        self._directory = directory
        self._takes_part = takes_part
        self._wanted = wanted_directory


def _check_directory(node: NodeId, directory: int, wanted: int) -> None:
    """Refuse a node whose data directory is not the one that it is known by: its votes and its log are others."""
    if wanted and directory != wanted:
        raise _refusal(
            Reason.DIRECTORY,
            f"the cluster knows {node} with data directory {wanted:016x}, it has {directory:016x}: "
            f"{_REPLACE.format(node)}",
        )


def _check_auth(own: Identity, auth: int, node: NodeId) -> None:
    if auth == own.auth:
        return
    if own.secret is None:
        raise _refusal(Reason.SECRET, f"{node} has a secret, {own.node} has none (cluster.secret_file)")
    raise _refusal(Reason.SECRET, f"{own.node} has a secret, {node} has none (cluster.secret_file)")


def _message(kind: Kind, body: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, kind, len(body)) + body


def _split(buffer: bytes, expected: Kind) -> tuple[bytes | None, bytes]:
    """Return the whole first message in `buffer` (None: not all of it is here yet) and what follows it.

    Refuses as soon as a byte is wrong, and a size before waiting for that much.
    """
    if buffer[: len(_MAGIC)] != _MAGIC[: len(buffer)]:
        raise _refusal(Reason.GARBAGE, f"not a smtpraft node: {buffer[:16]!r}")
    if len(buffer) < _HEADER.size:
        return None, buffer
    _, kind, size = _HEADER.unpack_from(buffer)
    if size > _BODY_BYTES_MAX:
        raise _refusal(Reason.GARBAGE, f"a handshake message of {size} bytes")
    if kind not in (expected, Kind.REFUSE):
        raise _refusal(Reason.GARBAGE, f"handshake message {kind} instead of {expected.name}")
    end = _HEADER.size + size
    if len(buffer) < end:
        return None, buffer
    message = buffer[:end]
    if kind == Kind.REFUSE:
        raise _refusal_from(message[_HEADER.size :])
    return message, buffer[end:]


def _refusal(reason: Reason, text: str) -> Refused:
    body = bytes([reason]) + text.encode("utf-8", "backslashreplace")[:_REFUSAL_TEXT_BYTES_MAX]
    return Refused(reason, text, answer=_message(Kind.REFUSE, body))


def _refusal_from(body: bytes) -> Refused:
    try:
        reason = Reason(body[0]) if body else Reason.UNSPECIFIED
    except ValueError:
        reason = Reason.UNSPECIFIED
    return Refused(reason, body[1:].decode("utf-8", "replace"), by_peer=True)


def _prove(secret: bytes | None, label: bytes, *transcript: bytes) -> bytes:
    # Each message says its own size, so the concatenation can be read in one way only.
    return hmac.digest(secret or b"", label + b"".join(transcript), "sha256")


def _pack_id(node: NodeId) -> bytes:
    text = node.encode("ascii")
    return bytes([len(text)]) + text


def _pack_directory(identity: Identity) -> bytes:
    return _DIRECTORY.pack(identity.directory, identity.takes_part)


def _unpack_directory(body: bytes, offset: int) -> tuple[int, bool, int]:
    """Return the incarnation, whether its node takes part, and where that ends; (0, False, …) if nothing is there."""
    if len(body) < offset + _DIRECTORY.size:
        return 0, False, offset
    directory, takes_part = _DIRECTORY.unpack_from(body, offset)
    return directory, takes_part == 1, offset + _DIRECTORY.size


def _pack_address(*addresses: str) -> bytes:
    packed = b""
    for address in addresses:
        text = address.encode("ascii", "ignore")
        text = text if len(text) <= _ADDRESS_BYTES_MAX else b""
        packed += bytes([len(text)]) + text
    return packed


def _unpack_addresses(body: bytes, offset: int) -> tuple[str, str]:
    found = []
    for _ in range(2):
        end = offset + 1 + body[offset] if offset < len(body) else 0
        if not offset < end <= len(body):
            raise _refusal(Reason.GARBAGE, "an address that ends outside its message")
        found.append(body[offset + 1 : end].decode("ascii", "replace"))
        offset = end
    return found[0], found[1]


def _unpack_id(body: bytes, offset: int) -> tuple[NodeId, int]:
    end = offset + 1 + body[offset] if offset < len(body) else 0
    if not offset < end <= len(body):
        raise _refusal(Reason.GARBAGE, "a node id that ends outside its message")
    try:
        return parse_node_id(body[offset + 1 : end].decode("ascii")), end
    except ValueError:
        raise _refusal(Reason.GARBAGE, f"a bad node id: {body[offset + 1 : end]!r}") from None
