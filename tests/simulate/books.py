"""The books of a simulation: notes what the clients see, as it happens, and closes a life when it ends."""

from __future__ import annotations

from collections.abc import Sequence

from engine.embedded.committer import FSYNC_INTERVAL_S, FsyncPolicy
from tests.simulate.clients import Words, timeout_ms
from tests.simulate.history import Answer, End, Kind, Life, Operation, Outcome, Request


class Books:
    """All lives of one simulation.

    Args:
        fsync: the policy of its engines.
        slowest_ms: the longest a commit or a sync may take.
    """

    def __init__(self, fsync: FsyncPolicy, slowest_ms: int) -> None:
        self.lives: list[Life] = []
        self.operations: list[Operation] = []
        self._fsync = fsync
        self._slowest_ms = slowest_ms
        self._in_flight: dict[int, Request] = {}
        self._is_shown = False
        self._logged_ms = (0, 0)

    @property
    def life(self) -> Life:
        """The life that runs, or the last one."""
        return self.lives[-1]

    def begin(self, now_ms: int, wall_ms: int) -> Life:
        """An engine has started.

        Args:
            now_ms: virtual time.
            wall_ms: what the wall clock shows.
        """
        clock_ms = (max(wall_ms, self._logged_ms[0]), max(wall_ms, self._logged_ms[1]))
        self.lives.append(Life(len(self.lives), now_ms, clock_ms))
        self._is_shown = False
        return self.life

    def send(self, client: int, words: Words, now_ms: int) -> Request:
        """A client sends a command."""
        return self._send(Request((self._operation(client, words, now_ms, timeout_ms(words)),)), now_ms)

    def send_batch(self, client: int, batch: Sequence[Words], now_ms: int, *, atomic: bool) -> Request:
        """A client sends several commands at once; none of them waits."""
        operations = [self._operation(client, words, now_ms, 0, place) for place, words in enumerate(batch)]
        return self._send(Request(tuple(operations), atomic), now_ms)

    def reach(self, now_ms: int) -> None:
        """The instant is over, and the engine has looked at everything that is in flight."""
        for request in self._in_flight.values():
            if request.reached_ms is None:
                request.reached_ms = now_ms

    def end(self, request: Request, now_ms: int, answers: Sequence[Answer] | None) -> None:
        """A client has its answers, or has left without (None); not if the engine was gone before."""
        if self._in_flight.pop(request.number, None) is not None:
            self._note(request, Outcome.LEFT if answers is None else Outcome.ANSWERED, now_ms)
            for operation, answer in zip(request.operations, answers or (), strict=answers is not None):
                operation.answer = answer
            self.life.events.append((now_ms, Kind.ENDED, request))

    @property
    def latest_ms(self) -> int:
        """The latest that engine time may have been so far."""
        return self._logged_ms[1]

    def show(self, wall_ms: int) -> None:
        """A start has shown what it found: from here on it stays. It may have gone by this wall clock already."""
        self._is_shown = True
        self._logged_ms = self._logged_ms[0], max(self._logged_ms[1], wall_ms)

    def close(self, end: End, now_ms: int) -> None:
        """The engine is gone. Unsynced data may go later: a power cut before the next start takes it as well."""
        if not self.lives:
            return
        life = self.life
        if not life.ended_ms:
            life.end, life.ended_ms = end, now_ms
            for request in self._in_flight.values():
                self._note(request, Outcome.LOST, now_ms)
            if end is not End.STOP:
                self._in_flight.clear()
            self._note_clock(life)
        elif life.end is End.KILL and not self._is_shown:
            life.end = end
        if life.end is End.POWER and self._fsync is not FsyncPolicy.ALWAYS:
            lazy_ms = round(FSYNC_INTERVAL_S * 1000) + 2 * self._slowest_ms
            is_bounded = self._fsync is FsyncPolicy.INTERVAL
            life.safe_ms = max(life.started_ms, life.ended_ms - lazy_ms) if is_bounded else life.started_ms

    def _operation(self, client: int, words: Words, now_ms: int, timeout_ms: int | None, place: int = 0) -> Operation:
        number = len(self.operations)
        self.operations.append(Operation(number, client, words, now_ms, timeout_ms=timeout_ms, place=place))
        return self.operations[-1]

    def _send(self, request: Request, now_ms: int) -> Request:
        self._in_flight[request.number] = request
        self.life.events.append((now_ms, Kind.SENT, request))
        return request

    def _note(self, request: Request, outcome: Outcome, now_ms: int) -> None:
        for operation in request.operations:
            operation.outcome, operation.ended_ms = outcome, now_ms

    def _note_clock(self, life: Life) -> None:
        """Engine time never runs behind the log: not behind the last acknowledged write, that is all one can know."""
        earliest, latest = self._logged_ms
        if self._fsync is FsyncPolicy.ALWAYS:
            written = [one.invoked_ms for one in life.operations if one.answer is not None and one.answer[0] == "ok"]
            earliest = max(earliest, life.engine_ms(max(written, default=life.started_ms))[0] if written else 0)
        self._logged_ms = earliest, max(latest, life.engine_ms(life.ended_ms)[1])
