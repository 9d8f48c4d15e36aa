"""`smtpraft bench`: whole systems on this machine, measured against targets that are ratios of one run."""

from __future__ import annotations
