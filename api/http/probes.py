"""What the two probes answer, whoever serves them.

    GET /livez    200 while the event loop runs
    GET /readyz   200 while commands are taken; 503 while the server starts, or stops, or does not reach Redis

A server that refuses only a part of the commands, because its disk or its memory is full, is `degraded`, and that is a
200: whoever takes its clients away for a 503 would take away those who pop and delete, and so make room again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from api.dialects.answers import Answer, failure
from engine.replies import Failure

LIVEZ, READYZ = PROBES = ("/livez", "/readyz")
"""Their paths. They carry no secrets and learn none: a supervisor need not know the token."""

_ALIVE = Answer(200, b'{"status": "alive"}')


class Probes:
    """Answers probes.

    Args:
        readiness: says what is in force, or why commands are not taken: `Face.readiness`.

    Attributes:
        readiness: this. The composition root puts that of the engine here when there is one.
    """

    def __init__(self, readiness: Callable[[], Failure | Mapping[str, str | int]]) -> None:
        self.readiness = readiness

    def answer(self, path: str) -> Answer:
        """Answers a probe.

        Args:
            path: one of `PROBES`.
        """
        if path == LIVEZ:
            return _ALIVE
        found = self.readiness()
        if isinstance(found, Failure):
            return failure(503, found.error.value, found.detail)
        return Answer(200, json.dumps({"status": "ready", **found}).encode())
