"""The process of an SMTP worker: `smtp.workers` of a node starts it, nobody else.

It is told what to do over the Unix socket whose descriptor it is given, and ends when that is closed: a node that is
killed leaves no worker behind, even if the worker's loop is stuck, for a thread looks after it. Signals are for the
node (a service manager sends SIGTERM to both): the node says when to drain.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import smtpraft
from smtpraft.cli import logs
from smtpraft.cli.exits import Exit
from smtpraft.cli.loops import loop_factory
from smtpraft.smtp.worker import GOODBYE_S, Worker
from smtpraft.smtp.worker_frames import HEAD, Begin, FrameError, State, decode_begin

log = logging.getLogger(__name__)

BEGIN_S: Final = 30.0
END_S: Final = GOODBYE_S + 2.0
_PURE: Final = "SMTPRAFT_PURE"
_NODES_OWN: Final = ("SMTPRAFT_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "CREDENTIALS_DIRECTORY")


def command() -> tuple[list[str], dict[str, str]]:
    """Return what starts a worker, without the descriptor, and its environment: of the package that runs here.

    A worker speaks to the world: of the node's settings, its credentials and its service manager it gets nothing.
    """
    environ = {name: value for name, value in os.environ.items() if name == _PURE or not name.startswith(_NODES_OWN)}
    root = str(Path(smtpraft.__file__).resolve().parents[1])
    if sys.path and sys.path[0] and str(Path(sys.path[0]).resolve()) == root:  # `python -m smtpraft` beside the package
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environ.get("PYTHONPATH"))))
    return [sys.executable, "-P", "-m", __name__], environ


def main(arguments: Sequence[str]) -> int:
    """Run a worker; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    line = socket.socket(fileno=int(arguments[0]))
    try:
        begin = receive_begin(line)
    except (OSError, FrameError):
        return Exit.UNAVAILABLE  # the node has gone before it said anything
    line.setblocking(False)
    threading.Thread(target=_end_with_node, args=(line.fileno(),), name="node-watch", daemon=True).start()
    standing = _Standing(begin.node)
    standing.take(begin.state)
    logs.share_stderr()
    gc.freeze()
    try:
        with asyncio.Runner(loop_factory=loop_factory(begin.loop)) as runner:
            runner.run(Worker(begin, line, standing.take).run())
    except OSError as error:
        log.error("worker=%d cannot listen: %s", begin.number, error.strerror or error)
        return Exit.UNAVAILABLE
    except Exception:
        log.exception("worker=%d ended by a bug; please report it", begin.number)
        return Exit.SOFTWARE
    return Exit.OK


def receive_begin(line: socket.socket) -> Begin:
    """Wait for the first frame.

    Raises:
        OSError, FrameError: it does not come, or is none.
    """
    line.settimeout(BEGIN_S)

    def receive(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = line.recv(count - len(data))
            if not more:
                raise FrameError("the line ends")
            data += more
        return data

    length, _ = HEAD.unpack(receive(HEAD.size))
    return decode_begin(receive(length - 1))


class _Standing:
    """What the node is, for the log."""

    def __init__(self, node: str) -> None:
        self._standing = logs.Standing(node)
        self._logs: tuple[str, str] = ("", "")

    def take(self, state: State) -> None:
        """The node's state is another."""
        self._standing = logs.Standing(self._standing.node, state.term)
        if self._logs != (state.log_level, state.log_format):
            self._logs = (state.log_level, state.log_format)
            logs.configure(state.log_level, state.log_format, lambda: self._standing)


def _end_with_node(fd: int) -> None:
    """End this process some time after the other end of its line was closed, whatever its loop is doing."""
    watch = select.poll()
    watch.register(fd, 0)  # hang-up is told without asking
    watch.poll()
    time.sleep(END_S)
    os._exit(Exit.SOFTWARE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
