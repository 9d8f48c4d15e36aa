"""A highly available SMTP server: a message is answered 250 only once a majority of nodes has synced it."""

from __future__ import annotations

from smtpraft._version import __version__

__all__ = ["__version__"]
