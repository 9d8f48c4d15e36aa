"""What the service manager and this process tell each other: systemd's notifications, watchdog and sockets.

    READY=1                       the log is replayed and the listeners are open; a leader is not waited for, or the
                                  nodes of a cluster that is started together would wait for each other
    WATCHDOG=1                    from the event loop, at half of WATCHDOG_USEC: a loop that is stuck falls silent
    RELOADING=1, MONOTONIC_USEC   SIGHUP came; READY=1 follows
    EXTEND_TIMEOUT_USEC           a long log is being read: the loop runs, so give it time
    STOPPING=1                    SIGTERM came
    LISTEN_PID, LISTEN_FDS        sockets that are open already, from descriptor 3 on; LISTEN_FDNAMES names them

Without a manager (no NOTIFY_SOCKET) all of it is silence. See sd_notify(3), sd_listen_fds(3) and
sd_watchdog_enabled(3).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from smtpraft.config import ConfigError

log = logging.getLogger(__name__)

FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
SOCKETS_MAX: Final = 64
START_STEP_S: Final = 5.0
START_EXTENSION_S: Final = 30.0


class ServiceManager:
    """The one that started us, if it listens. Nothing here blocks or raises once it is made: we can run without it."""

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _notify_address(environ.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self._told = ""
        self.watchdog_interval_s = _watchdog_interval_s(environ) if self._address else 0.0
        """How often `alive` is to be called; 0: nobody waits for it."""
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
            environ.pop(name, None)  # a child must not speak for us

    @property
    def listens(self) -> bool:
        """Is there anybody to tell?"""
        return self._socket is not None

    def starting(self) -> None:
        """The start goes on: do not lose patience."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(START_EXTENSION_S * 1e6)}", "STATUS=reading the log")

    def ready(self) -> None:
        """Started, or done with a reload."""
        self._send("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """The settings are being read again; call `ready` afterwards. `Type=notify-reload` wants the time too."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._told = ""
        self._send("STOPPING=1", "STATUS=stopping: messages under way are answered")

    def alive(self) -> None:
        """The loop runs."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`; sent only when it is another than the last."""
        if text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except BlockingIOError:
            pass  # it is slower than we are; what is said is said again soon
        except OSError as error:
            log.warning("the service manager does not listen address=%r error=%s", self._address, error.strerror)
            self.close()


def _notify_address(text: str) -> str:
    if text.startswith("@"):
        return "\0" + text[1:]  # the abstract namespace
    return text if text.startswith("/") else ""


def _watchdog_interval_s(environ: MutableMapping[str, str]) -> float:
    """Return half of what the manager allows between two signs of life, or 0 if it does not wait for ours."""
    text = environ.get("WATCHDOG_USEC", "")
    if not text.isdecimal() or int(text) == 0 or environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(text) / 1e6 / 2


def inherited_sockets(environ: MutableMapping[str, str] | None = None) -> list[socket.socket]:
    """Return the listening sockets that the service manager opened for us, for SMTP, in its order; usually none.

    With them `smtp.listen` is not opened: a port below 1024 needs no capability, and while the node restarts, clients
    wait in the kernel instead of being refused.

    Raises:
        ConfigError: something else than listening stream sockets was passed, or a name that we have no use for.
    """
    environ = os.environ if environ is None else environ
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not count or pid != str(os.getpid()):
        return []
    if not count.isdecimal() or int(count) > SOCKETS_MAX:
        raise ConfigError(f"LISTEN_FDS={count!r}: no number of sockets, or more than {SOCKETS_MAX}")
    given = names.split(":") if names else []
    sockets: list[socket.socket] = []
    for position in range(int(count)):
        fd = FIRST_FD + position
        name = given[position] if position < len(given) else ""
        if name and name != "smtp" and not name.endswith(".socket") and name != "unknown":
            raise ConfigError(
                f"socket {name!r} of the service manager: only SMTP listeners can be passed; "
                "set FileDescriptorName=smtp in its unit, or remove it"
            )
        sockets.append(_listening(fd, name))
    return sockets


def _listening(fd: int, name: str) -> socket.socket:
    advice = "set ListenStream= and Accept=no in the socket unit"
    try:
        found = socket.socket(fileno=fd)
    except OSError as error:
        raise ConfigError(f"descriptor {fd} of the service manager ({name!r}) is no socket: {error.strerror}") from None
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        raise ConfigError(f"socket {name!r} of the service manager is no TCP socket: {advice}")
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ConfigError(f"socket {name!r} of the service manager does not listen: {advice}")
    found.set_inheritable(False)
    found.setblocking(False)
    return found
