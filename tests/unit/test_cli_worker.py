"""How a node starts the processes that speak SMTP for it."""

from __future__ import annotations

import pytest

from smtpraft.cli import worker


def test_a_worker_gets_nothing_of_the_nodes_secrets_and_its_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("SMTPRAFT_CLUSTER__SECRET_FILE", "SMTPRAFT_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_PID", "LISTEN_FDS")
    for name in (*own, "CREDENTIALS_DIRECTORY", "SMTPRAFT_PURE", "LANG"):
        monkeypatch.setenv(name, "1")
    _, environ = worker.command()
    assert not environ.keys() & {*own, "CREDENTIALS_DIRECTORY"}
    assert (environ["SMTPRAFT_PURE"], environ["LANG"]) == ("1", "1")
