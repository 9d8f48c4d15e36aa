"""Mail in: SMTP sessions; an envelope becomes a command, a commit becomes a 250."""

from __future__ import annotations

from typing import Final

from smtpraft.smtp import _half, fast
from smtpraft.smtp.handler import SubmitMail
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.statistics import Histogram, SmtpStatistics
from smtpraft.smtp.workers import SmtpWorkers, WorkersFailed

COMPILED: Final = _half.is_compiled(fast)
"""Is the session compiled?"""

__all__ = ["COMPILED", "Histogram", "SmtpServer", "SmtpStatistics", "SmtpWorkers", "SubmitMail", "WorkersFailed"]
