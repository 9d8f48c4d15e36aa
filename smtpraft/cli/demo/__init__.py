"""`smtpraft demo`: real nodes on this machine, real mail, leaders killed in mid-flight, and the count."""

from __future__ import annotations

from smtpraft.cli.demo.run import demo

__all__ = ["demo"]
