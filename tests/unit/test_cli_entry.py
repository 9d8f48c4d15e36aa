"""What can be typed, and the exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from smtpraft import __version__
from smtpraft.cli import halves, main


@pytest.mark.parametrize(
    "argv", [[], ["sreve"], ["queue"], ["queue", "delete"], ["demo", "--nodes", "2"], ["status", "-w", "xml"]]
)
def test_a_wrong_command_line_is_64(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 64
    assert "usage: smtpraft" in capsys.readouterr().err


def test_version_says_which_half_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "-w", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == __version__
    assert facts["compiled"] is halves.complete(facts["compiled_parts"])


def test_config_check_tells_every_problem_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[smtp]\nfoo = 1\n[log]\nbar = 2\n")
    assert main(["config", "check", str(path)]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.partition(": unknown")[0] for line in err.splitlines()] == [
        f"smtpraft: {path}:2",
        f"smtpraft: {path}:4",
    ]


def test_config_check_reads_the_secret_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("short")
    path = tmp_path / "x.toml"
    path.write_text(f'[cluster]\nsecret_file = "{secret}"\n')
    assert main(["config", "check", str(path), "-w", "json"]) == 78
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert str(secret) in problem


def test_config_show_prints_what_differs_and_effective_prints_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMTPRAFT_LOG__LEVEL", "debug")
    path = tmp_path / "x.toml"
    path.write_text('[smtp]\nhostname = "mx.example.org"\n')
    assert main(["config", "show", str(path)]) == 0
    assert capsys.readouterr().out == '[smtp]\nhostname = "mx.example.org"\n\n[log]\nlevel = "debug"\n'
    assert main(["config", "show", str(path), "--effective", "-w", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["log.level"] == {"value": "debug", "source": "SMTPRAFT_LOG__LEVEL"}
    assert shown["smtp.hostname"]["source"] == f"{path}:2"
    assert shown["smtp.max_recipients"] == {"value": 1000, "source": "default"}


def test_what_config_show_prints_is_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.toml"
    path.write_text('[delivery]\nroutes = [{ domain = "*", to = "discard:" }]\nretry_s = [1, 2.5]\n')
    assert main(["config", "show", str(path), "--effective"]) == 0
    again = tmp_path / "y.toml"
    again.write_text(capsys.readouterr().out)
    assert main(["config", "show", str(path)]) == 0
    first = capsys.readouterr().out
    assert main(["config", "check", str(again)]) == 0
    assert "retry_s = [1, 2.5]" in first


def test_no_node_is_69(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "list", "--endpoints", "127.0.0.1:1"]) == 69
    assert "no node is running there" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["all", "../x", "0000?000"])
def test_what_is_no_queue_id_never_reaches_a_node(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["queue", "show", text, "--endpoints", "127.0.0.1:1"]) in (64, 69)
    assert main(["queue", "delete", "ALL", "x"]) == 64
    assert "ALL stands alone" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e99", "soon"])
def test_a_timeout_that_is_none_is_64(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["status", "--command-timeout", text])
    assert caught.value.code == 64
    assert "is no number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"two words of it", b"two\nlines", b"\xff" * 20])
def test_what_is_no_token_is_refused_and_never_shown(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    assert main(["status", "--token-file", str(path)]) == 78
    told = capsys.readouterr().err
    assert "one line of printable ASCII" in told
    assert "words" not in told
    assert "lines" not in told


def test_a_port_that_is_none_is_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--endpoints", "127.0.0.1:99999"]) == 69
    assert "99999 is no port" in capsys.readouterr().err


@pytest.mark.parametrize("redirection", ["<&-", ">&-", ">/dev/full"])
def test_closed_and_full_streams_show_no_traceback(redirection: str) -> None:
    action = "queue delete -" if redirection == "<&-" else "version"
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m smtpraft {action} {redirection}"],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == {"<&-": 64, ">&-": 0, ">/dev/full": 1}[redirection]
    assert "Traceback" not in ended.stderr
    assert (ended.stderr == "") == (redirection == ">&-")


def test_serve_declines_to_run_without_assertions() -> None:
    ended = subprocess.run(
        [sys.executable, "-O", "-m", "smtpraft", "serve"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 78
    assert "assertions" in ended.stderr


def test_the_client_commands_import_nothing_heavy() -> None:
    script = (
        "import sys; from smtpraft.cli import main; main(['status', '--endpoints', '127.0.0.1:1']); print(*sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    modules = set(ended.stdout.split())
    assert not modules & {"asyncio", "aiohttp", "msgspec", "aiosmtpd", "apsw", "uvloop", "prometheus_client"}


@pytest.mark.parametrize("command", [["queue", "list"], ["status"]])
@pytest.mark.parametrize("option", ["--cacert", "--cert", "--key"])
def test_a_certificate_that_cannot_be_used_is_named(
    command: list[str], option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing, empty = str(tmp_path / "nowhere.pem"), tmp_path / "empty.pem"
    empty.touch()
    at = [*command, "--endpoints", "https://127.0.0.1:1"]
    assert main([*at, option, missing]) == 78
    assert capsys.readouterr().err == f"smtpraft: {option} {missing}: No such file or directory\n"
    if option != "--key":
        assert main([*at, option, str(empty)]) == 78
        assert capsys.readouterr().err.startswith(f"smtpraft: {option} {empty}: cannot be used: ")
