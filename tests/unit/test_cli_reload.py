"""What a reload may change, and what has to wait for a restart."""

from __future__ import annotations

import msgspec

from smtpraft.cli.reload import LIVE, compare
from smtpraft.cli.settings import SECTIONS
from smtpraft.config import Config, LogSettings, SmtpSettings


def test_a_change_is_split_into_what_is_live_and_what_waits() -> None:
    wanted = Config(smtp=SmtpSettings(max_recipients=200, listen=["127.0.0.1:26"]), log=LogSettings(level="debug"))
    change = compare(Config(), wanted)
    assert set(change.live) == {"smtp.max_recipients", "log.level"}
    assert change.waiting == ("smtp.listen",)
    assert change.merged == msgspec.structs.replace(wanted, smtp=SmtpSettings(max_recipients=200))
    assert compare(change.merged, wanted).live == (), "what waits is said again at the next reload, and changes nothing"


def test_the_live_settings_exist() -> None:
    assert {f"{name}.{key}" for name, kind in SECTIONS.items() for key in kind.__struct_fields__} >= LIVE
