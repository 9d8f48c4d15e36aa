"""What is said to a service manager, and what is taken from it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from smtpraft.cli import manager as module
from smtpraft.cli.manager import ServiceManager, inherited_sockets
from smtpraft.config import ConfigError


def heard(listener: socket.socket) -> list[str]:
    """Return the lines of the next datagram."""
    return listener.recv(4096).decode().split("\n")


def listening(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(address)
    listener.settimeout(5)
    return listener


@pytest.mark.parametrize("abstract", [False, True])
def test_each_state_has_its_words(tmp_path: Path, abstract: bool) -> None:
    """sd_notify(3); an `@` stands for the zero byte of an abstract address."""
    name = f"smtpraft-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with listening(f"\0{name}" if abstract else name) as listener:
        environ = {"NOTIFY_SOCKET": f"@{name}" if abstract else name, "WATCHDOG_USEC": "3000000"}
        manager = ServiceManager(environ)
        assert environ == {}, "children must not speak for us"
        assert manager.watchdog_interval_s == 1.5
        manager.starting()
        assert heard(listener)[0].startswith("EXTEND_TIMEOUT_USEC=")
        manager.ready()
        assert heard(listener) == ["READY=1", f"MAINPID={os.getpid()}"]
        manager.status("leads")
        manager.status("leads")
        manager.alive()
        assert heard(listener) == ["STATUS=leads"]
        assert heard(listener) == ["WATCHDOG=1"], "the same status is not sent again"
        manager.reloading()
        word, clock = heard(listener)
        assert word == "RELOADING=1"
        assert clock.removeprefix("MONOTONIC_USEC=").isdecimal()
        manager.stopping()
        assert heard(listener)[0] == "STOPPING=1"
        manager.close()


def test_without_a_manager_nothing_is_said() -> None:
    manager = ServiceManager({"WATCHDOG_USEC": "3000000"})
    assert (manager.listens, manager.watchdog_interval_s) == (False, 0)
    manager.ready()
    manager.alive()


def test_the_watchdog_of_another_process_is_not_ours(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    manager = ServiceManager(environ)
    assert manager.watchdog_interval_s == 0
    manager.close()


def test_a_manager_that_has_gone_is_not_spoken_to_again(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    manager.ready()
    assert not manager.listens


def passed(count: int, names: str = "") -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count)} | ({"LISTEN_FDNAMES": names} if names else {})


def test_sockets_are_taken_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        monkeypatch.setattr(module, "FIRST_FD", os.dup(given.fileno()))
        environ = passed(1, "smtp")
        (taken,) = inherited_sockets(environ)
        with taken:
            assert environ == {}
            assert taken.getsockname() == given.getsockname()
            assert not taken.get_inheritable()


def test_sockets_for_another_process_are_left_alone() -> None:
    assert inherited_sockets(passed(2) | {"LISTEN_PID": "1"}) == []
    assert inherited_sockets({}) == []


def test_what_is_no_listener_for_smtp_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refusal(fd: int, name: str = "") -> str:
        monkeypatch.setattr(module, "FIRST_FD", fd)
        with pytest.raises(ConfigError) as caught:
            inherited_sockets(passed(1, name))
        return str(caught.value)

    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "FileDescriptorName=smtp" in refusal(os.dup(server.fileno()), "admin")
    with socket.socket() as silent:
        assert "does not listen" in refusal(os.dup(silent.fileno()))
    with listening(str(tmp_path / "n")) as datagrams:
        assert "no TCP socket" in refusal(os.dup(datagrams.fileno()))
    with (tmp_path / "file").open("w") as file:
        assert "is no socket" in refusal(os.dup(file.fileno()))
    with pytest.raises(ConfigError, match="LISTEN_FDS"):
        inherited_sockets(passed(1) | {"LISTEN_FDS": "many"})
