"""Judges of whole clusters: what they did, and whether it was right."""

from __future__ import annotations
