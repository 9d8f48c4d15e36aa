"""What an operator types: serve, status, queue, config, demo. Each imports what it needs, no more."""

from __future__ import annotations

from smtpraft.cli.entry import main

__all__ = ["main"]
