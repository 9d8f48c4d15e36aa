"""Seeds that once showed something: each is lived again for ever after, with what it showed."""

from __future__ import annotations

from typing import Final

from smtpraft.simulator.campaign import Order

PINNED: Final[tuple[tuple[Order, str], ...]] = ()
"""(what to live, what it showed once)."""
