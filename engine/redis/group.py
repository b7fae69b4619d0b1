"""A group: requests that go to a node as one pipeline, and what its answers make of each.

What a request needs before it, ASKING or CLIENT CACHING, goes with it. A group that writes has a WAIT behind it if
replicas have to follow, and what it has written is done only when they have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import trio
from coredis.connection._request import RequestBatch

from engine.redis.errors import Lost, NotReplicated
from engine.redis.node import Simple, is_answer
from engine.redis.request import Request
from engine.redis.vitals import ROLE

GROUP_MAX = 256
"""Requests of one pipeline: their answers take some ms, then others have their turn."""

GROUP_BYTES_MAX = 1024 * 1024
"""Words of one pipeline, in bytes; the last request may go beyond."""

ANSWERS_BYTES_MAX = 8 * 1024 * 1024
"""What the answers to one pipeline may be expected to have, by the last one: all of them are in memory at once, with
the node and with us.
"""

WAIT_TIMEOUT_S = 1.0
"""How long replicas may take."""

_ASKING = Simple(b"ASKING", ())
_TRACK = Simple(b"CLIENT", (b"CACHING", b"YES"))


class Group:
    """Requests that are sent as one pipeline.

    Args:
        requests: one or more.
        min_replicas: that have to have what they write.

    Attributes:
        requests: as given.
        batch: what to await for the answers, once it was `sent`.
        sent_s: trio time of that.
        followed: whether replicas enough have what was written, as far as we have heard.
    """

    __slots__ = ("_min_replicas", "_waits", "batch", "followed", "requests", "sent_s")

    def __init__(self, requests: list[Request], min_replicas: int) -> None:
        self.requests = requests
        self.batch: RequestBatch
        self.sent_s: float
        self.followed = True
        self._min_replicas = min_replicas
        self._waits = min_replicas > 0 and any(request.writes for request in requests)

    def commands(self) -> list[object]:
        """The commands of the pipeline: the requests, and what has to stand before and behind them."""
        commands: list[object] = []
        for request in self.requests:
            if request.asking:
                commands.append(_ASKING)
            elif request.tracked:  # not both: each holds for the very next command only
                commands.append(_TRACK)
            commands.append(request)
        if self._waits:
            commands.append(Simple(b"WAIT", (self._min_replicas, int(WAIT_TIMEOUT_S * 1000))))
        return commands

    def sent(self, batch: RequestBatch) -> None:
        """It is on its way."""
        self.batch = batch
        self.sent_s = trio.current_time()

    def judge(self, results: Sequence[Any], lost: Callable[[Exception], Lost]) -> Sequence[Any]:
        """Says what became of each request.

        Args:
            results: of all commands of the pipeline.
            lost: makes of an error that is no answer of the node's what became of its request.
        """
        if len(results) > len(self.requests):
            acknowledged = results[-1] if self._waits else None
            results = self._without_prefixes(results)
            if self._waits and not (isinstance(acknowledged, int) and acknowledged >= self._min_replicas):
                self.followed = False
                unheard = None if is_answer(acknowledged) else acknowledged
                results = [
                    (lost(unheard) if isinstance(unheard, Exception) else NotReplicated(result))
                    if request.writes and _changed(result)
                    else result
                    for request, result in zip(self.requests, results, strict=True)
                ]
        if isinstance(results[-1], Exception):  # of those that are lost it is one
            results = [result if is_answer(result) or _is_ours(result) else lost(result) for result in results]
        return results

    def _without_prefixes(self, results: Sequence[Any]) -> list[Any]:
        """The results of the requests alone."""
        own: list[Any] = []
        left = iter(results)
        for request in self.requests:
            if request.asking or request.tracked:
                next(left)
            own.append(next(left))
        return own


def next_requests(outbox: deque[Request], count_max: int) -> list[Request]:
    """Takes out of an outbox what goes in the next group."""
    requests: list[Request] = []
    left_bytes = GROUP_BYTES_MAX
    if outbox[0].name == ROLE[0]:  # alone: its answer shall not wait for replicas
        return [outbox.popleft()]
    while outbox and len(requests) < count_max and left_bytes > 0:
        request = outbox.popleft()
        requests.append(request)
        left_bytes -= sum([len(word) for word in request.serialized_arguments if type(word) is bytes])
    return requests


def next_count_max(results: Sequence[Any]) -> int:
    """How many requests the next pipeline may have, if its answers are like these."""
    answers_bytes = sum([len(result) for result in results if type(result) is bytes])
    return max(1, min(GROUP_MAX, len(results) * ANSWERS_BYTES_MAX // max(1, answers_bytes)))


def _changed(result: Any) -> bool:
    """Whether a write has done anything: null and 0 say that there was nothing to do; 0 at the head, of a unit."""
    answer = result[0] if isinstance(result, list) else result
    return not isinstance(answer, Exception) and answer not in (None, 0)


def _is_ours(result: object) -> bool:
    return isinstance(result, (Lost, NotReplicated))
