"""The parts of a node that only look: events, history, overview; put together from what each part counts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from aiohttp import web
from prometheus_client import Metric

from smtpraft.admin import overview, tracing
from smtpraft.admin.feed import Feed
from smtpraft.admin.history import SAMPLE_S, History, Sample
from smtpraft.admin.overview import Destination, Overview
from smtpraft.admin.site import Site
from smtpraft.admin.tracing import Tracing
from smtpraft.admin.watch import Watch
from smtpraft.cluster.node import Node
from smtpraft.delivery.delivery import Delivery
from smtpraft.smtp import SmtpServer, SmtpWorkers
from smtpraft.smtp.statistics import ACK_SECONDS_BOUNDS
from smtpraft.spool.client import SpoolClient
from smtpraft.storage.stats import SYNC_BUCKETS_S

log = logging.getLogger(__name__)

_NOT_DELIVERED: Final = ("deferred", "bounced", "expired")


class Observing:
    """For one node. A bug in here is said and costs the page, not the mail."""

    def __init__(
        self, node: Node, client: SpoolClient, smtp: SmtpServer | SmtpWorkers, delivery: Delivery, data_dir: str
    ) -> None:
        self._node = node
        self._smtp = smtp
        self._delivery = delivery
        self._client = client
        self._data_dir = data_dir
        self._tasks: list[asyncio.Task[None]] = []
        self.feed = Feed()
        self._watch = Watch(self.feed, node.status)
        self._history = History(self._sample)
        self._overview = Overview(
            node,
            self._watch,
            self._history,
            counts=client.counts,
            oldest_age_s=client.oldest_age_s,
            destinations=self._destinations,
            connections=lambda: smtp.statistics.connections,
            ack_bounds=ACK_SECONDS_BOUNDS,
            sync_bounds=SYNC_BUCKETS_S,
            data_dir=data_dir,
        )
        self._tracing = Tracing(node, client)
        self._site = Site(self.feed, self._watch, self._overview, self._tracing, client)
        self.routes: list[web.RouteDef] = self._site.routes()

    def start(self) -> None:
        """Begin to look; the node has started."""
        self._client.subscribe(self._watch.queue_changed)
        self._node.inquiries.answer(overview.OPERATION, self._overview.facts)
        self._node.inquiries.answer(tracing.OPERATION, self._tracing.here)
        loop = asyncio.get_running_loop()
        for work, name in ((self._watch.run(), "watch"), (self._remember(), "history")):
            task = loop.create_task(work, name=f"observing-{name}")
            task.add_done_callback(self._ended)
            self._tasks.append(task)

    async def close(self) -> None:
        """End the streams, look no more."""
        self.feed.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def draining(self) -> None:
        """The node begins to stop: say so."""
        self._overview.draining = True
        self.feed.publish("cluster", "draining", f"{self._node.id} is stopping", node=self._node.id)

    def metrics(self) -> Iterable[Metric]:
        """Yield what the looking itself counts."""
        return self._site.metrics()

    async def _remember(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            self._history.look()

    @staticmethod
    def _ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("observing ended by a bug task=%s; please report it", task.get_name(), exc_info=error)

    def _sample(self) -> Sample:
        statistics, results = self._smtp.statistics, self._delivery.metrics.recipients
        syncs = self._node.writer_stats.sync_counts if self._tasks else [0] * (len(SYNC_BUCKETS_S) + 1)
        return Sample(
            accepted=statistics.messages_received,
            delivered=results["delivered"],
            failed=sum(results[name] for name in _NOT_DELIVERED),
            ack_counts=tuple(statistics.ack_seconds.counts),
            sync_counts=tuple(syncs),
        )

    def _destinations(self) -> list[Destination]:
        found = []
        for queue in self._delivery.destinations:
            down = (queue.outage.answer.text or "no connection") if queue.outage is not None else ""
            if queue.loaded or queue.connections or down:
                found.append((str(queue.destination), queue.loaded, queue.connections, down))
        return found
