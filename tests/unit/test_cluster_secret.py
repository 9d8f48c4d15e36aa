"""When a cluster needs a secret, and how it is read."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from smtpraft.cluster.addresses import Peer
from smtpraft.cluster.secret import SECRET_BYTES_MAX, check_secret_policy, read_secret
from smtpraft.config import ConfigError
from smtpraft.types import NodeId

SECRET = b"0123456789abcdef"
LOCAL = Peer(NodeId("node-2"), "127.0.0.2", 5001)
REMOTE = Peer(NodeId("node-3"), "10.0.0.3", 5001)


def write(path: Path, data: bytes, mode: int = 0o600) -> str:
    path.write_bytes(data)
    path.chmod(mode)
    return str(path)


def test_on_loopback_no_secret_is_needed() -> None:
    check_secret_policy(None, ("127.0.0.1", 5001), [LOCAL])
    check_secret_policy(None, ("::1", 5001), [])
    check_secret_policy(None, ("localhost", 5001), [])


@pytest.mark.parametrize(
    ("listen", "peers", "named"),
    [
        (("0.0.0.0", 5001), [], "cluster.listen (0.0.0.0:5001)"),  # noqa: S104 - text
        (("::", 5001), [LOCAL], "cluster.listen ([::]:5001)"),
        (("127.0.0.1", 5001), [LOCAL, REMOTE], "peer node-3 (10.0.0.3:5001)"),
        (("127.0.0.1", 5001), [Peer(NodeId("node-2"), "node-2", 5001)], "peer node-2 (node-2:5001)"),
    ],
)
def test_anywhere_else_a_secret_is_required(listen: tuple[str, int], peers: list[Peer], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_secret_policy(None, listen, peers)
    assert named in str(caught.value)
    assert "secret_file" in str(caught.value)
    assert "openssl rand" in str(caught.value)
    check_secret_policy(SECRET, listen, peers)


def test_a_short_secret_is_none() -> None:
    with pytest.raises(ConfigError, match="at least 16"):
        check_secret_policy(SECRET[1:], ("127.0.0.1", 5001), [])


@pytest.mark.parametrize(
    ("data", "secret"),
    [
        (SECRET, SECRET),
        (SECRET + b"\n", SECRET),
        (SECRET + b"\r\n", SECRET),
        (SECRET + b" \n\n", SECRET + b" \n"),
        (b"\0\n" + SECRET, b"\0\n" + SECRET),
        (b"x" * SECRET_BYTES_MAX + b"\n", b"x" * SECRET_BYTES_MAX),
    ],
)
def test_a_secret_is_the_file_without_its_last_newline(tmp_path: Path, data: bytes, secret: bytes) -> None:
    assert read_secret(write(tmp_path / "secret", data)) == secret


@pytest.mark.parametrize("data", [b"", b"\n", b"0123456789abcde\n", b"x" * (SECRET_BYTES_MAX + 1)])
def test_a_secret_of_a_wrong_size_is_refused_without_being_shown(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "secret", data)
    with pytest.raises(ConfigError, match="must hold 16 to 4096 bytes") as caught:
        read_secret(path)
    assert path in str(caught.value)
    assert "0123456789" not in str(caught.value)


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match="cannot read") as caught:
            read_secret(str(path))
        assert str(path) in str(caught.value)


def test_a_secret_that_others_can_read_is_used_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_secret(write(tmp_path / "private", SECRET, 0o600))
        assert not caplog.records
        read_secret(write(tmp_path / "public", SECRET, 0o640))
    assert "chmod 600" in caplog.text
    assert SECRET.decode() not in caplog.text
