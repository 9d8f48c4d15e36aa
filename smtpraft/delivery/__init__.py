"""Mail out: schedule, routes, SMTP and LMTP client, Maildir, bounces."""

from __future__ import annotations

from smtpraft.delivery.delivery import Delivery, LeaseHolder
from smtpraft.delivery.metrics import DeliveryMetrics
from smtpraft.delivery.reader import MailQueue
from smtpraft.delivery.routes import Destination, Routes, parse_destination

__all__ = ["Delivery", "DeliveryMetrics", "Destination", "LeaseHolder", "MailQueue", "Routes", "parse_destination"]
