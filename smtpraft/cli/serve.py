"""`smtpraft serve`: everything before the event loop runs and after it has ended."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import logging
import os
import resource
from typing import Final

from smtpraft._version import __version__
from smtpraft.cli import halves, logs
from smtpraft.cli.configuration import load_or_fail, read_secrets
from smtpraft.cli.daemon import Daemon
from smtpraft.cli.exits import CommandError, Exit
from smtpraft.cli.loops import loop_factory
from smtpraft.cli.manager import ServiceManager, inherited_sockets
from smtpraft.cli.settings import JOIN_VARIABLE, load
from smtpraft.config import ConfigError

log = logging.getLogger(__name__)

OPEN_FILES_WANTED: Final = 65_536


def serve(path: str | None, join: str | None = None) -> int:
    """Run a node until it is told to stop; return the exit status. `join` takes the place of `cluster.join`.

    Raises:
        CommandError: it cannot start: CONFIG for what an operator must change, UNAVAILABLE for what others hold.
    """
    if not __debug__:
        raise CommandError(Exit.CONFIG, "python -O removes the assertions that guard the queue: start without -O")
    override = {} if join is None else {JOIN_VARIABLE: json.dumps(join.split(","))}
    loaded = load_or_fail(path, override)
    logs.configure(loaded.config.log.level, loaded.config.log.format)
    faulthandler.enable()
    manager = ServiceManager()
    _raise_open_files()
    try:
        secret, token = read_secrets(loaded.config)
        factory = loop_factory(loaded.config.node.loop)
        sockets = inherited_sockets()
    except ConfigError as error:
        raise CommandError(Exit.CONFIG, *error.problems) from None
    parts = halves.parts()
    log.info(
        "smtpraft version=%s compiled=%s config=%s",
        __version__,
        repr(halves.words(parts)),
        loaded.path or "(defaults)",
    )
    if not halves.complete(parts):
        log.warning(
            "running without the compiled half of %s: correct, but slow; install a wheel for this platform",
            ", ".join(name for name, runs in parts.items() if not runs),
        )
    for warning in loaded.warnings:
        log.warning("%s", warning)
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(
                Daemon(
                    loaded.config,
                    secret,
                    token,
                    manager=manager,
                    sockets=sockets,
                    reread=lambda: load(path, os.environ | override).config,
                ).run()
            )
    except CommandError as error:
        for line in error.lines:
            log.error("%s", line)
        return error.status
    except Exception:
        log.exception("ended by a bug; please report it")
        return Exit.SOFTWARE


def _raise_open_files() -> None:
    """A connection is a file: use as many as the system allows without asking an administrator."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(OPEN_FILES_WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
