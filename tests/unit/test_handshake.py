"""The first bytes between two nodes: who gets in, who does not, and what a liar can do."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtpraft.cluster.handshake import Acceptor, Channel, Dialler, Identity, Kind, Reason, Refused
from smtpraft.types import NodeId

CLUSTER = bytes(range(16))
SECRET = b"a secret of 24 bytes ..."
ONE = Identity(NodeId("node-1"), CLUSTER, 11, SECRET)
TWO = Identity(NodeId("node-2"), CLUSTER, 22, SECRET)
GOLDEN = Path(__file__).parents[1] / "data" / "wire_handshake_v1.txt"


def fixed(byte: int) -> Callable[[int], bytes]:
    return lambda size: bytes([byte]) * size


def dial(identity: Identity = ONE, peer: str = "node-2", channel: Channel = Channel.BULK) -> Dialler:
    return Dialler(identity, NodeId(peer), channel)


def accept(identity: Identity = TWO, *peers: str) -> Acceptor:
    return Acceptor(identity, {NodeId(peer): 0 for peer in peers or ("node-1", "node-3")})


def shake(dialler: Dialler, acceptor: Acceptor) -> None:
    """Run to the end, or to the first refusal."""
    to_acceptor = dialler.start()
    assert acceptor.start() == b""
    while to_acceptor:
        to_dialler = acceptor.receive(to_acceptor)
        to_acceptor = dialler.receive(to_dialler) if to_dialler else b""


def refused(dialler: Dialler, acceptor: Acceptor) -> Refused:
    with pytest.raises(Refused) as caught:
        shake(dialler, acceptor)
    assert dialler.established is None
    assert acceptor.established is None
    return caught.value


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("channel", Channel)
def test_two_nodes_of_a_cluster_agree_on_who_they_are(secret: bytes | None, channel: Channel) -> None:
    dialler = dial(replace(ONE, secret=secret), channel=channel)
    acceptor = accept(replace(TWO, secret=secret))
    shake(dialler, acceptor)
    assert dialler.established is not None
    assert acceptor.established is not None
    out, inn = dialler.established, acceptor.established
    assert (out.peer, out.incarnation, out.version, out.channel, out.rest) == ("node-2", 22, 1, channel, b"")
    assert (inn.peer, inn.incarnation, inn.version, inn.channel, inn.rest) == ("node-1", 11, 1, channel, b"")


def test_it_works_byte_by_byte() -> None:
    dialler, acceptor = dial(), accept()
    to_acceptor = dialler.start()
    while acceptor.established is None:
        answers = b"".join(acceptor.receive(bytes([byte])) for byte in to_acceptor)
        to_acceptor = b"".join(dialler.receive(bytes([byte])) for byte in answers)
    assert dialler.established is not None


def test_what_follows_the_handshake_in_one_read_is_not_lost() -> None:
    dialler, acceptor = dial(), accept()
    challenge = acceptor.receive(dialler.start())
    accepted = acceptor.receive(dialler.receive(challenge) + b"first frame")
    assert acceptor.established is not None
    assert acceptor.established.rest == b"first frame"
    dialler.receive(accepted + b"pong")
    assert dialler.established is not None
    assert dialler.established.rest == b"pong"


@pytest.mark.parametrize(
    ("dialler", "acceptor", "reason", "words"),
    [
        (dial(replace(ONE, cluster_id=bytes(16))), accept(), Reason.CLUSTER, CLUSTER.hex()),
        (dial(peer="node-3"), accept(), Reason.WRONG_NODE, "node-1 wants node-3, but this is node-2"),
        (dial(replace(ONE, node=NodeId("node-9"))), accept(), Reason.UNKNOWN_NODE, "node-9"),
        (dial(TWO), accept(), Reason.SELF, "node-2 dialled itself"),
        (dial(replace(ONE, secret=b"x" * 16)), accept(), Reason.SECRET, "do not have the same secret"),
        (dial(replace(ONE, secret=None)), accept(), Reason.SECRET, "node-2 has a secret, node-1 has none"),
        (dial(), accept(replace(TWO, secret=None)), Reason.SECRET, "node-1 has a secret, node-2 has none"),
        (dial(replace(ONE, version_min=2, version_max=4)), accept(), Reason.VERSION, "1 to 1, node-1 speaks 2 to 4"),
        (dial(), accept(replace(TWO, version_min=2, version_max=2)), Reason.VERSION, "2 to 2, node-1 speaks 1 to 1"),
    ],
)
def test_who_does_not_belong_is_refused_and_both_learn_why(
    dialler: Dialler, acceptor: Acceptor, reason: Reason, words: str
) -> None:
    refusal = refused(dialler, acceptor)
    assert (refusal.reason, refusal.by_peer) == (reason, False)
    assert words in refusal.text
    with pytest.raises(Refused) as told:
        dialler.receive(refusal.answer)
    assert (told.value.reason, told.value.text, told.value.by_peer) == (reason, refusal.text, True)
    assert told.value.answer == b""


@pytest.mark.parametrize(
    ("ours", "theirs", "version"), [((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 2), (2, 2), 2), ((1, 1), (1, 9), 1)]
)
def test_the_highest_common_version_is_spoken(ours: tuple[int, int], theirs: tuple[int, int], version: int) -> None:
    dialler = dial(replace(ONE, version_min=ours[0], version_max=ours[1]))
    acceptor = accept(replace(TWO, version_min=theirs[0], version_max=theirs[1]))
    shake(dialler, acceptor)
    assert dialler.established is not None
    assert acceptor.established is not None
    assert dialler.established.version == acceptor.established.version == version


def test_an_unknown_channel_is_refused() -> None:
    hello = bytearray(dial().start())
    hello[11 + 4] = 9
    with pytest.raises(Refused) as caught:
        accept().receive(bytes(hello))
    assert caught.value.reason is Reason.CHANNEL


def test_a_dialler_does_not_take_another_nodes_word_for_it() -> None:
    """An acceptor that is not the one dialled is refused by the dialler too, even if it let the hello pass."""
    dialler = dial(peer="node-2")
    acceptor = accept(replace(TWO, node=NodeId("node-3")), "node-1")
    hello = dialler.start().replace(b"node-2", b"node-3")
    with pytest.raises(Refused) as caught:
        dialler.receive(acceptor.receive(hello))
    assert caught.value.reason is Reason.WRONG_NODE
    assert caught.value.text == "dialled node-2, but node-3 answered"
    with pytest.raises(Refused, match="dialled node-2") as told:
        acceptor.receive(caught.value.answer)
    assert told.value.by_peer


def test_an_acceptor_that_does_not_know_the_secret_is_found_out() -> None:
    """It may wave everybody through, but not prove itself."""
    dialler = dial()
    acceptor = Acceptor(replace(TWO, secret=b"another secret!!"), {NodeId("node-1"): 0})
    proof = dialler.receive(acceptor.receive(dialler.start()))
    forged = proof[:8] + bytes([Kind.ACCEPT]) + proof[9:]
    with pytest.raises(Refused) as caught:
        dialler.receive(forged)
    assert caught.value.reason is Reason.SECRET
    assert dialler.established is None


def test_a_nodes_own_proof_sent_back_proves_nothing() -> None:
    """A reflection: the attacker connects to node-1 while node-1 dials him, and lets node-1 answer itself."""
    dialler = dial()
    own_acceptor = accept(ONE, "node-2")
    hello_of_attacker = Dialler(replace(TWO, secret=b"?" * 16), ONE.node, Channel.BULK).start()
    challenge_of_own = own_acceptor.receive(hello_of_attacker)
    # Node-1's own challenge, with the attacker's name, given to node-1's dialler.
    challenge = challenge_of_own.replace(b"node-1", b"node-2")
    proof = dialler.receive(challenge)
    with pytest.raises(Refused) as caught:
        own_acceptor.receive(proof)
    assert caught.value.reason is Reason.SECRET
    with pytest.raises(Refused):
        dialler.receive(proof[:8] + bytes([Kind.ACCEPT]) + proof[9:])


def test_a_recorded_handshake_is_worth_nothing_later() -> None:
    dialler, acceptor = dial(), accept()
    hello = dialler.start()
    proof = dialler.receive(acceptor.receive(hello))
    acceptor.receive(proof)
    again = accept()
    again.receive(hello)
    with pytest.raises(Refused) as caught:
        again.receive(proof)
    assert caught.value.reason is Reason.SECRET


def test_nobody_learns_a_proof_without_giving_one_first() -> None:
    """Until the dialler has proven itself the acceptor says nothing that depends on the secret."""
    answers = [
        Acceptor(replace(TWO, secret=secret), {NodeId("node-1"): 0}, random_bytes=fixed(7)).receive(
            Dialler(ONE, TWO.node, Channel.BULK, random_bytes=fixed(9)).start()
        )
        for secret in (SECRET, b"x" * 16)
    ]
    assert answers[0] == answers[1]


def messages() -> list[bytes]:
    """HELLO, CHALLENGE, PROOF, ACCEPT of a handshake with fixed nonces."""
    dialler = Dialler(ONE, TWO.node, Channel.BULK, random_bytes=fixed(0xD1))
    acceptor = Acceptor(TWO, {ONE.node: 0}, random_bytes=fixed(0xAC))
    hello = dialler.start()
    challenge = acceptor.receive(hello)
    proof = dialler.receive(challenge)
    return [hello, challenge, proof, acceptor.receive(proof)]


def test_every_changed_bit_ends_in_a_refusal() -> None:
    """A man in the middle changes one bit of one message: never do both sides finish."""
    for number, message in enumerate(messages()):
        for bit in range(len(message) * 8):
            changed = bytearray(message)
            changed[bit // 8] ^= 1 << (bit % 8)
            dialler = Dialler(ONE, TWO.node, Channel.BULK, random_bytes=fixed(0xD1))
            acceptor = Acceptor(TWO, {ONE.node: 0}, random_bytes=fixed(0xAC))
            try:
                data = dialler.start()
                for step, receive in enumerate(itertools.cycle([acceptor.receive, dialler.receive])):
                    data = receive(bytes(changed) if step == number else data)
                    if not data:
                        break
            except Refused:
                pass
            assert dialler.established is None, f"message {number}, bit {bit}"
            assert acceptor.established is None or number == 3, f"message {number}, bit {bit}"


@given(data=st.binary(max_size=700), prefix=st.integers(0, 3))
def test_garbage_is_refused_or_waited_for_but_never_believed(data: bytes, prefix: int) -> None:
    magic = [b"", b"SMTPRAFT", b"SMTPRAFT\x01\x00\x60", dial().start()[:60]][prefix]
    acceptor, dialler = accept(), dial()
    for end in (acceptor, dialler):
        try:
            end.receive(magic + data)
        except Refused as refusal:
            assert len(refusal.answer) <= 11 + 241  # noqa: PT017 - or it waits for more, which is as good
        assert end.established is None


def test_a_foreign_protocol_is_refused_at_its_first_byte() -> None:
    for data in (b"G", b"GET / HTTP/1.1\r\n\r\n", b"EHLO x\r\n", b"SMTPRAFU"):
        with pytest.raises(Refused) as caught:
            accept().receive(data)
        assert caught.value.reason is Reason.GARBAGE


def test_a_large_message_is_refused_before_it_is_waited_for() -> None:
    for size in (513, 0xFFFF):
        with pytest.raises(Refused, match=f"{size} bytes"):
            accept().receive(b"SMTPRAFT" + struct.pack(">BH", Kind.HELLO, size))


def test_a_message_out_of_turn_is_refused() -> None:
    hello, challenge, proof, accepted = messages()
    for data in (challenge, proof, accepted):
        with pytest.raises(Refused, match="instead of HELLO"):
            accept().receive(data)
    for data in (hello, proof, accepted):
        with pytest.raises(Refused, match="instead of CHALLENGE"):
            dial().receive(data)


def test_later_versions_may_add_fields() -> None:
    """Unknown bytes at the end of a hello are ignored, and proven like the rest."""

    class Newer(Dialler):
        def start(self) -> bytes:
            hello = super().start() + b"new field"
            self._hello = hello[:9] + struct.pack(">H", len(hello) - 11) + hello[11:]
            return self._hello

    dialler, acceptor = Newer(replace(ONE, directory=1 << 40), TWO.node, Channel.BULK), accept()
    shake(dialler, acceptor)
    assert acceptor.established is not None
    assert acceptor.established.directory == 1 << 40


def test_a_refusal_from_a_later_version_is_understood_as_one() -> None:
    for body in (b"", b"\xc8something new", b"\x07\xff\xfe"):
        with pytest.raises(Refused) as caught:
            dial().receive(b"SMTPRAFT" + struct.pack(">BH", Kind.REFUSE, len(body)) + body)
        assert caught.value.by_peer


def test_the_secret_is_in_no_text() -> None:
    assert SECRET.decode() not in repr(ONE)
    assert SECRET.decode() not in repr(refused(dial(replace(ONE, secret=b"x" * 16)), accept()))
    assert all(SECRET not in message for message in messages())


@pytest.mark.parametrize(
    "change",
    [{"cluster_id": b"short"}, {"incarnation": -1}, {"incarnation": 1 << 64}, {"version_min": 2}, {"version_min": 0}],
)
def test_an_identity_that_does_not_fit_is_no_identity(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(ONE, **change)  # type: ignore[arg-type]


def test_the_bytes_of_version_1_stay_what_they_are() -> None:
    names = ("HELLO", "CHALLENGE", "PROOF", "ACCEPT")
    written = dict(line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#"))
    assert written == {name: message.hex() for name, message in zip(names, messages(), strict=True)}
