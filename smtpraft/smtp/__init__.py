"""Mail in: SMTP sessions; an envelope becomes a command, a commit becomes a 250."""

from __future__ import annotations

from smtpraft.smtp.handler import SubmitMail
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.statistics import Histogram, SmtpStatistics

__all__ = ["Histogram", "SmtpServer", "SmtpStatistics", "SubmitMail"]
