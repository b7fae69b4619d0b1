"""Refused requests in numbers and in the log, and how often a line of the log is repeated.

The rules that hold here:

- Each refusal is counted by its status, for `/stats`.
- Why somebody was not let in (401, 403) is logged, once in `SELDOM_S` for each status: the reason, never the token.
- Whatever a client can repeat is logged once in `SELDOM_S`: no flood of requests becomes a flood of lines.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from api.dialects.answers import Answer

SELDOM_S = 30.0
"""Between two lines that say the same."""

STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 414, 415, 431, 500, 501, 503, 505, 507)
"""What a request may be refused with: each is in the numbers from the start."""

_LOGGED = (401, 403)
_KINDS_MAX = 256

_BROUGHT_ABOUT = ("holdfast.http", "holdfast.redis.refused", "trio.serve_listeners")
"""Loggers of which each line may be one that a client can have said as often as it likes."""

_logger = logging.getLogger("holdfast.http.refused")  # with a name of its own, so that `Seldom` leaves it alone


class Refusals:
    """Counts what is refused, and says now and then who was not let in and why."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(STATUSES, 0)
        self._often = {status: _Often() for status in _LOGGED}

    def note(self, answer: Answer, peer: Callable[[], str]) -> None:
        """Counts an answer with a status of 400 or more.

        Args:
            answer: as it is sent; to HEAD, with the body that it would have.
            peer: says which address it goes to.
        """
        status = answer.status
        self.count(status)
        if status in _LOGGED:
            more = self._often[status].more(time.monotonic())
            if more is not None:
                members = json.loads(answer.body)
                detail = members.get("detail", "")
                _logger.warning("refused %s: %d %s, %s%s", peer(), status, members["error"], detail, _and(more))

    def count(self, status: int) -> None:
        """Counts a response by its status; one below 400 is none of ours."""
        if status >= 400:
            self._counts[status] = self._counts.get(status, 0) + 1

    def statistics(self) -> dict[str, int]:
        """The counts since the start, for `/stats`."""
        return {f"refused_{status}": count for status, count in self._counts.items()}


@dataclass(slots=True)
class _Often:
    """When the same was said last, and how often it would have been since."""

    next_s: float = -math.inf
    unsaid: int = 0

    def more(self, now_s: float) -> int | None:
        """Says how often it was not said, if it is to be said now; else None."""
        if now_s < self.next_s:
            self.unsaid += 1
            return None
        self.next_s = now_s + SELDOM_S
        unsaid, self.unsaid = self.unsaid, 0
        return unsaid


def _and(more: int) -> str:
    return f" (and {more} more since the last such line)" if more else ""


class Seldom(logging.Filter):
    """Lets a line through once in `SELDOM_S`, and says then how many more there were.

    Lines are the same when their text before its arguments is, and what was raised, and where.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._often: dict[tuple[object, ...], _Often] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Says whether a record is written."""
        kind = (record.name, record.msg, *_where(record))
        now_s = self._clock()
        if kind not in self._often and len(self._often) >= _KINDS_MAX:
            self._often = {kind: often for kind, often in self._often.items() if often.next_s > now_s}
        more = self._often.setdefault(kind, _Often()).more(now_s)
        if more:
            record.msg = f"{record.msg}{_and(more)}"
        return more is not None


def _where(record: logging.LogRecord) -> tuple[object, ...]:
    """What was raised, and where."""
    error = record.exc_info[1] if record.exc_info else None
    traceback = error.__traceback__ if error is not None else None
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    line = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) if traceback is not None else ()
    return (type(error), *line)


def complain_seldom() -> None:
    """Has what clients bring about be said once in `SELDOM_S` only, whoever says it, libraries too."""
    for name in _BROUGHT_ABOUT:
        logging.getLogger(name).addFilter(Seldom())
