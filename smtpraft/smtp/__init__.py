"""Mail in: SMTP sessions; an envelope becomes a command, a commit becomes a 250."""

from __future__ import annotations

from smtpraft.smtp.handler import SubmitMail
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.statistics import Histogram, SmtpStatistics
from smtpraft.smtp.workers import SmtpWorkers, WorkersFailed

__all__ = ["Histogram", "SmtpServer", "SmtpStatistics", "SmtpWorkers", "SubmitMail", "WorkersFailed"]
