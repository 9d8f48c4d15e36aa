"""Events: what has changed in the cluster and in the queue, as one node saw it, told to whoever listens.

A node keeps its last events, and each listener has a queue of its own, bounded: who reads too slowly is told so, and
let go. Nothing here waits for a listener.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

KEPT_EVENTS: Final = 500
WAITING_EVENTS_MAX: Final = 1000
LISTENERS_MAX: Final = 64
TOPICS: Final = ("cluster", "queue")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `facts` go to programs, `text` to people; `at` is seconds since 1970 by our clock."""

    number: int
    at: float
    topic: str
    kind: str
    text: str
    facts: dict[str, object]

    def view(self) -> dict[str, object]:
        """Return what is sent."""
        return {
            "id": self.number,
            "time": round(self.at, 3),
            "topic": self.topic,
            "kind": self.kind,
            "text": self.text,
            **self.facts,
        }


class TooManyListeners(Exception):
    """There are as many as there may be."""


class Listener:
    """One reader's queue. Made by `Feed.listen`; closed by the reader."""

    def __init__(self, topics: Collection[str]) -> None:
        self.topics = frozenset(topics)
        self.missed = 0
        """Events that found the queue full. Above 0: nothing more comes."""
        self.closed = False
        """The node stops."""
        self._waiting: deque[Event] = deque()
        self._news = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Queue an event, or count it as missed."""
        if self.missed or len(self._waiting) >= WAITING_EVENTS_MAX:
            self.missed += 1
        else:
            self._waiting.append(event)
        self._news.set()

    def close(self) -> None:
        """Nothing more comes."""
        self.closed = True
        self._news.set()

    def take(self) -> list[Event]:
        """Return what waits."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._news.clear()
        return taken

    async def wait(self, timeout_s: float) -> None:
        """Return when there is something, or it is over, or the time is."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            return


class Feed:
    """All events of one node. On the loop's thread."""

    def __init__(self) -> None:
        self.kept: deque[Event] = deque(maxlen=KEPT_EVENTS)
        """The last ones of the cluster; those of messages are not kept."""
        self.listeners: set[Listener] = set()
        self.dropped_listeners = 0
        """Listeners that were let go because they read too slowly."""
        self._number = 0

    def publish(self, topic: str, kind: str, text: str, **facts: object) -> None:
        """Tell those who listen to `topic`."""
        self._number += 1
        event = Event(self._number, time.time(), topic, kind, text, facts)
        if topic == "cluster":
            self.kept.append(event)
        for listener in self.listeners:
            if topic in listener.topics:
                listener.offer(event)

    def wanted(self, topic: str) -> bool:
        """Does anybody listen to `topic`?"""
        return any(topic in listener.topics for listener in self.listeners)

    def listen(self, topics: Collection[str], after: int | None = None) -> Listener:
        """Begin to listen; with `after`, first to what is kept of later numbers.

        Raises:
            TooManyListeners: there are `LISTENERS_MAX` already.
        """
        if len(self.listeners) >= LISTENERS_MAX:
            raise TooManyListeners(f"{LISTENERS_MAX} listen already")
        listener = Listener(topics)
        if after is not None:
            for event in self.kept:
                if event.number > after and event.topic in listener.topics:
                    listener.offer(event)
        self.listeners.add(listener)
        return listener

    def forget(self, listener: Listener) -> None:
        """A reader has gone."""
        self.listeners.discard(listener)
        self.dropped_listeners += bool(listener.missed)

    def close(self) -> None:
        """The node stops: tell all listeners."""
        for listener in self.listeners:
            listener.close()
