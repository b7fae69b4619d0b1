"""Kills processes of a documented worker at random moments, with random signals, and counts the jobs.

`python -m tests.docs.kill --seconds 3600 README.md worker.sh` does it for an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.docs.worker import Worker
from tests.harness.process import Server
from tests.harness.waiting import wait_until

SIGNALS = (signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)

_WORKERS = 3
_KILLS = 8
"""In a round, after which everything is ended and counted."""

_JOBS_MAX = 20
_PAUSE_S = 0.3
"""The most before a kill: time to start, do all jobs and wait again, or for nothing of it."""


@dataclass
class Result:
    """What became of the jobs."""

    pushed: int = 0
    done: int = 0
    waiting: int = 0
    kills: int = 0
    lost: list[int] = field(default_factory=list)
    twice: list[int] = field(default_factory=list)


class Trial:
    """A server, and some workers of one kind that are killed.

    Args:
        server: runs.
        page: where the worker is documented.
        name: of its file.
        scratch: a directory for it.
        seed: of all that is drawn by lot.
    """

    def __init__(self, server: Server, page: str, name: str, scratch: Path, seed: int) -> None:
        self._server = server
        self._random = random.Random(seed)
        self._workers = [Worker(page, name, server.port, scratch) for _ in range(_WORKERS)]
        self._pushed = 0
        self._left: list[int] = []
        self._kills = 0

    def round(self) -> Result:
        """Kills for a while, ends all workers, empties the queue, and counts since the beginning."""
        with ExitStack() as stack:
            for worker in self._workers:
                stack.enter_context(worker)
            self._wait_for_one_at_work()
            for _ in range(_KILLS):
                self._push(self._random.randrange(_JOBS_MAX))
                time.sleep(self._random.random() * _PAUSE_S)  # the moment is what is drawn
                self._kill(self._random.choice(self._workers))
            for worker in self._workers:
                self._kills += worker.is_running
                worker.end(self._random.choice(SIGNALS))
        wait_until(lambda: self._server.get("/stats")[1]["waiters"] == 0)
        self._push(2)
        self._drain()
        return self._result()

    def _wait_for_one_at_work(self) -> None:
        before = len(self._workers[0].done)
        self._push(1)
        wait_until(lambda: len(self._workers[0].done) > before)

    def _push(self, count: int) -> None:
        for _ in range(count):
            self._pushed += 1
            self._server.post({"command": "QPUSH", "key": "jobs", "value": json.dumps({"id": self._pushed})})

    def _kill(self, worker: Worker) -> None:
        with suppress(IndexError, ProcessLookupError):  # there is none; or it has ended just now
            os.kill(self._random.choice(worker.processes()), self._random.choice(SIGNALS))
            self._kills += 1
        if not worker.is_running:
            worker.start()

    def _drain(self) -> None:
        while (job := self._server.post({"command": "BQPOP jobs 0"})[1]["value"]) is not None:
            self._left.append(json.loads(job)["id"])

    def _result(self) -> Result:
        done = self._workers[0].done
        once = {*done, *self._left}
        twice = sorted(job for job in once if done.count(job) + self._left.count(job) > 1)
        lost = sorted({*range(1, self._pushed + 1)} - once)
        return Result(self._pushed, len(done), len(self._left), self._kills, lost, twice)


def main() -> None:
    """Kills until the time is over, or until something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page")
    parser.add_argument("name")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    ends_s = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch) / "data") as server:
        trial = Trial(server, options.page, options.name, Path(scratch), options.seed)
        while time.monotonic() < ends_s:
            result = trial.round()
            assert len(result.lost) <= result.kills, result
            assert not result.twice, result
        print(json.dumps(asdict(result) | {"lost": len(result.lost)}))


if __name__ == "__main__":
    main()
