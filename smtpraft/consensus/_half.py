"""The choice of this package's half, made when this module is imported: before any other of the package."""

from __future__ import annotations

from smtpraft.half import choose, is_compiled

choose(__file__)

__all__ = ["is_compiled"]
