"""Whole clusters in virtual time."""

from __future__ import annotations
