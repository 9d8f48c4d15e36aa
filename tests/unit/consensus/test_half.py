"""Which half of the core runs: all of it compiled, or all of it plain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smtpraft import consensus
from smtpraft.consensus import Message, MessageType
from smtpraft.consensus.messages import FIELDS

DIRECTORY = Path(str(consensus.__file__)).parent
LIBRARIES = sorted(DIRECTORY.glob("*.so"))
SAY = """
import sys
from smtpraft import consensus
modules = [module for name, module in sorted(sys.modules.items()) if name.startswith("smtpraft.consensus.")]
print(consensus.COMPILED, *(module.__file__.rpartition("/")[2] for module in modules))
"""

needs_compiled = pytest.mark.skipif(not LIBRARIES, reason="the compiled core is not built")


def run(pure: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SAY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SMTPRAFT_PURE": pure},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@needs_compiled
def test_the_compiled_core_is_taken_where_there_is_one() -> None:
    for pure in ("", "0"):
        compiled, *files = run(pure)
        assert compiled == "True"
        assert sorted(name for name in files if name.endswith(".so")) == [path.name for path in LIBRARIES]


def test_the_plain_core_is_taken_when_asked_for() -> None:
    """Although the other lies beside it."""
    compiled, *files = run("1")
    assert compiled == "False"
    assert {"raft.py", "rawnode.py", "messages.py"} <= set(files)
    assert not [name for name in files if not name.endswith(".py")]


@needs_compiled
def test_each_compiled_module_has_its_types_and_its_plain_twin() -> None:
    compiled = {path.name.partition(".")[0] for path in LIBRARIES}
    assert compiled == {path.stem for path in DIRECTORY.glob("*.pxd")} or not list(DIRECTORY.glob("*.pxd"))
    assert all((DIRECTORY / f"{name}.py").exists() for name in compiled)


def test_a_message_knows_all_that_it_holds() -> None:
    """`FIELDS` is what comparing and showing look at."""
    values = {
        "type": MessageType.APP,
        **{name: name for name in ("to", "sender", "vote")},
        **{name: number for number, name in enumerate(("term", "log_term", "index", "commit", "reject_hint"), 1)},
        "reject": True,
        **{name: name.encode() for name in ("context", "block")},
        "entries": consensus.EntryRange(1, 2),
        "payloads": ((0, b"x"),),
        "snapshot": consensus.SnapshotMeta(1, 1, consensus.ConfState()),
        "responses": (Message(MessageType.APP_RESP),),
    }
    assert set(values) == set(FIELDS)
    message = Message(**values)  # type: ignore[arg-type]
    assert {name: getattr(message, name) for name in FIELDS} == values
    assert message == Message(*(values[name] for name in FIELDS))  # type: ignore[arg-type]
    for name in FIELDS[1:]:
        assert message != Message(**{**values, name: getattr(Message(MessageType.APP), name)})
    assert repr(message).startswith("Message(APP, to='to', sender='sender', term=1,")


def test_numbers_that_no_record_can_hold_are_errors() -> None:
    """Where the compiled half keeps 64 bits: an error, never a smaller number. The plain half keeps any."""
    largest = Message(MessageType.APP, term=2**64 - 1)
    assert largest.term == 2**64 - 1
    if consensus.COMPILED:
        for wrong in (-1, 2**64):
            with pytest.raises(OverflowError):
                Message(MessageType.APP, term=wrong)
