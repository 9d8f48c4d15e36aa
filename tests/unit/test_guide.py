"""The guide for three machines: its settings can be used, its commands exist, its unit is the one that is shipped."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from smtpraft.cli.entry import build_parser
from smtpraft.cli.settings import load

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "three-machines.md").read_text()


def test_the_settings_of_the_guide_are_those_of_a_node(tmp_path: Path) -> None:
    """With what the unit adds to them."""
    (tmp_path / "node-1.toml").write_text(GUIDE.partition("```toml\n")[2].partition("```")[0])
    for name in ("secret", "admin-token"):
        (tmp_path / name).write_text("0" * 64)
        (tmp_path / name).chmod(0o600)
    unit = (ROOT / "deploy" / "systemd" / "smtpraft@.service").read_text()
    environ = dict(
        pair.partition("=")[::2]
        for line in re.findall(r"^Environment=(.*)$", unit, re.MULTILINE)
        for pair in line.replace("%i", "node-1").replace("%d", str(tmp_path)).replace("%S", "/var/lib").split()
    )
    loaded = load(str(tmp_path / "node-1.toml"), environ)
    assert loaded.warnings == ()
    assert loaded.config.node.data_dir == "/var/lib/smtpraft/node-1"
    assert len(loaded.config.cluster.peers) == 2


def test_the_commands_of_the_guide_are_ours() -> None:
    commands = re.findall(r"/bin/smtpraft ([a-z][^#\n]*)", GUIDE)
    assert len(commands) >= 5
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)).command
