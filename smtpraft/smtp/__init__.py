"""Mail in: SMTP sessions; an envelope becomes a command, a commit becomes a 250."""

from __future__ import annotations

from smtpraft.smtp.handler import AcceptMail
from smtpraft.smtp.server import SmtpServer
from smtpraft.smtp.statistics import Histogram, SmtpStatistics

__all__ = ["AcceptMail", "Histogram", "SmtpServer", "SmtpStatistics"]
