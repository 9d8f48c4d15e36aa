"""What is made from the grammar of the command line: the manual, and the completions as the shells see them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from smtpraft.cli import completion, manual
from smtpraft.cli.entry import build_parser
from smtpraft.cli.grammar import read, walk

PARSER = build_parser()


def test_the_manual_has_every_command_and_every_option() -> None:
    page = manual.page(PARSER)
    commands = [command for command in walk(read(PARSER)) if command.path and not command.actions]
    assert len(commands) > 20
    for command in commands:
        part = page.partition(f".SS {' '.join(command.path)}\n")[2].partition("\n.SS")[0]
        assert part, command.path
        for option in command.options:
            for name in option.names:
                if name not in ("-h", "--help"):
                    assert name.replace("-", "\\-") in part, (command.path, name)


@pytest.mark.skipif(shutil.which("man") is None, reason="man is not here")
def test_the_manual_is_sound_troff(tmp_path: Path) -> None:
    (tmp_path / "smtpraft.1").write_text(manual.page(PARSER))
    shown = subprocess.run(
        ["man", "-l", "--warnings", str(tmp_path / "smtpraft.1")], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    assert "snapshot restore" in shown.stdout


def bash(line: str, tmp_path: Path) -> set[str]:
    """Return what bash offers after `line`."""
    words = line.split(" ")
    (tmp_path / "c").write_text(completion.script(PARSER, "bash"))
    script = (
        f"cd {tmp_path}; . ./c; COMP_WORDS=({' '.join(repr(word) for word in words)}); COMP_CWORD={len(words) - 1}; "
        '_smtpraft; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not here")
def test_bash_offers_commands_actions_options_and_values(tmp_path: Path) -> None:
    assert {"serve", "status", "queue"} <= bash("smtpraft ", tmp_path)
    assert bash("smtpraft sta", tmp_path) == {"status"}
    assert {"list", "show", "hold"} <= bash("smtpraft queue ", tmp_path)
    assert bash("smtpraft queue list --lim", tmp_path) == {"--limit"}
    assert bash("smtpraft status -w ", tmp_path) == {"simple", "table", "json"}
    assert bash("smtpraft log level ", tmp_path) >= {"debug", "info"}
    assert bash("smtpraft serve --config c", tmp_path) == {"c"}, "a file"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_the_script(shell: str, tmp_path: Path) -> None:
    text = completion.script(PARSER, shell)
    for word in ("serve", "snapshot", "--endpoints" if shell == "zsh" else "-l endpoints"):
        assert word in text
    if shutil.which(shell) is not None:
        (tmp_path / "c").write_text(text)
        done = subprocess.run([shell, "-n", str(tmp_path / "c")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
