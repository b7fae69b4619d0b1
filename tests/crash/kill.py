"""B11, B12: a real server under load, killed with SIGKILL again and again, and held against its clients' books.

    python -m tests.crash.kill --kills 1000 --seed 1 --results kill.jsonl

A campaign is one data directory and 50 kills, one after the other: at a random moment of the load, while a segment
rolls, while a checkpoint is written, and in the middle of a start. After each, the first thing the next server is asked
is everything it should know. Two campaigns run at a time. Each that is done is a line of the results file, and a second
run with the same arguments goes on behind those; one that failed prints why and leaves its data directory behind.
What clients do follows from the seed; what the machine makes of it does not.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from tests.harness.load import check, new_books, run_load
from tests.harness.process import START_WITHIN_S, Server

CAMPAIGN_KILLS = 50
PARALLEL = 2

LOAD_S_MAX = 0.7
EVENT_WITHIN_S = 1.5
START_S_MAX = 0.04

SEGMENT_SIZE = "256KiB"


@dataclass
class Totals:
    """What campaigns came to.

    Attributes:
        kills: by what they hit.
        acknowledged: commands that were answered.
        unknown: commands whose answer the kill took.
        delivered: values that queues handed over.
        batches: pipelines and units that were answered.
        seconds: of the clock; of campaigns side by side, their sum.
    """

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    unknown: int = 0
    delivered: int = 0
    batches: int = 0
    seconds: float = 0.0

    def add(self, other: Totals) -> None:
        """Adds another campaign's."""
        self.kills += other.kills
        self.acknowledged += other.acknowledged
        self.unknown += other.unknown
        self.delivered += other.delivered
        self.batches += other.batches
        self.seconds += other.seconds

    def __str__(self) -> str:
        hit = ", ".join(f"{count} {what}" for what, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total():,} kills ({hit}), {self.acknowledged:,} commands acknowledged, with {self.batches:,}"
            f" batches among them, {self.unknown:,} unknown, {self.delivered:,} values delivered, {self.seconds:,.0f} s"
        )


class Failed(Exception):
    """The books do not fit, or the server did not start; the message is the whole story."""


class Campaign:
    """One data directory and the servers that are killed on it.

    Args:
        data: the directory; must not exist yet.
        seed: of the clients and the moments.
    """

    def __init__(self, data: Path, seed: int) -> None:
        self._server = Server(data, "--segment-size", SEGMENT_SIZE)
        self._seed = seed
        self._random = random.Random(seed)
        self._books = new_books()
        self._lives = 0
        self._last = "no kill yet"
        self.totals = Totals()

    def run(self, kills: int) -> Totals:
        """Kills so many times.

        Raises:
            Failed: something was lost, came back, or did not start.
        """
        started_s = time.monotonic()
        try:
            with self._server:
                while (left := kills - self.totals.kills.total()) > 0:
                    self._live(left)
        except Exception as error:
            raise Failed(self._story(error)) from error
        self.totals.acknowledged, self.totals.unknown = self._books.acknowledged, self._books.unknown
        self.totals.delivered, self.totals.batches = self._books.delivered, self._books.batches
        self.totals.seconds = time.monotonic() - started_s
        return self.totals

    def _live(self, kills: int) -> None:
        """Load, kill, perhaps kills of the starts that follow, start, check; at most so many kills."""
        self._lives += 1
        ends: tuple[Callable[[], Awaitable[None]], ...] = (
            self._at_random,
            self._at_random,
            self._at_roll,
            self._at_fold,
        )
        trio.run(run_load, self._address, self._books, self._seed * 1_000_000 + self._lives, self._random.choice(ends))
        while (kills := kills - 1) and self._random.random() < 0.25:
            self._kill_start()
        self._server.start()
        queues = list(self._books.queues) if not kills else self._random.sample(sorted(self._books.queues), 2)
        trio.run(check, self._address, self._books, queues)

    @property
    def _address(self) -> tuple[str, int]:
        return self._server.host, self._server.port

    async def _at_random(self) -> None:
        await trio.sleep(self._random.uniform(0.02, LOAD_S_MAX))
        self._kill("under load")

    async def _at_roll(self) -> None:
        """When a new segment, or one in the making, comes to be."""
        await self._appearing(lambda: {name for name in self._names() if ".log" in name and ".torn" not in name})
        await trio.sleep(self._random.uniform(0, 0.01))
        self._kill("in a roll")

    async def _at_fold(self) -> None:
        """While a snapshot is written, or when it takes the place of what it folds; by itself it comes later."""
        await trio.sleep(self._random.uniform(0.02, LOAD_S_MAX))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask_for_a_checkpoint)
            await self._appearing(lambda: {name for name in self._names() if ".snapshot" in name})
            await trio.sleep(self._random.choice((0, self._random.uniform(0, 0.02), self._random.uniform(0, 0.4))))
            self._kill("in a checkpoint")
            nursery.cancel_scope.cancel()

    async def _ask_for_a_checkpoint(self) -> None:
        with suppress(httpx.TransportError):  # the kill takes the answer
            async with httpx.AsyncClient(timeout=None) as client:
                await client.post(f"{self._server.url}/checkpoint")

    async def _appearing(self, names: Callable[[], set[str]]) -> None:
        """Returns when there is a name more; not to be waited for for ever."""
        before = names()
        with trio.move_on_after(EVENT_WITHIN_S):
            while not names() - before:  # noqa: ASYNC110 - another process's doing has no event
                await trio.sleep(0.001)

    def _kill_start(self) -> None:
        """Kills a server that has just begun to read its data, if need be by waiting for it."""
        lock = self._server.data / "LOCK"
        self._server.launch()
        deadline_s = time.monotonic() + START_WITHIN_S
        while lock.read_text() != f"process {self._server.pid}\n":
            assert self._server.is_running, f"the server ended:\n{self._server.log}"
            assert time.monotonic() < deadline_s, f"the server did not take the lock:\n{self._server.log}"
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, START_S_MAX))
        self._kill("in a start")

    def _kill(self, what: str) -> None:
        self._last = f"{what}, server log before it:\n{self._server.log}"
        self._server.kill()
        self.totals.kills[what] += 1

    def _names(self) -> set[str]:
        with suppress(OSError):
            return {entry.name for entry in self._server.data.iterdir()}
        return set()

    def _story(self, error: Exception) -> str:
        files = "".join(f"  {file.stat().st_size:>10} {file.name}\n" for file in sorted(self._server.data.iterdir()))
        return (
            f"seed {self._seed}, life {self._lives}, after kill {self.totals.kills.total()}\n"
            f"{''.join(traceback.format_exception(error))}\n"
            f"last kill {self._last}\n"
            f"server log since:\n{self._server.log}\n"
            f"{self._server.data}:\n{files}"
        )


def _done(results: Path | None, seed: int) -> dict[int, Totals]:
    """Campaigns that an earlier run with this seed has finished."""
    done: dict[int, Totals] = {}
    if results is not None and results.exists():
        for line in results.read_text().splitlines():
            fields = json.loads(line)
            if fields.pop("seed") == seed:
                number = fields.pop("campaign")
                done[number] = Totals(**{**fields, "kills": Counter(fields["kills"])})
    return done


class Command:
    """`python -m tests.crash.kill`: campaign after campaign, with a line for each."""

    def __init__(self, kills: int, seed: int, results: Path | None) -> None:
        self._kills = kills
        self._seed = seed
        self._results = results
        self._finished = _done(results, seed)
        self._failed = 0
        self._scratch = Path(tempfile.mkdtemp(prefix="holdfast-kill-"))
        self._started_s = time.monotonic()

    def run(self) -> int:
        """Returns the exit code: 1 when a campaign failed."""
        numbers = [number for number in range(math.ceil(self._kills / CAMPAIGN_KILLS)) if number not in self._finished]
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._run_campaign, numbers))
        self._say(f"in all: {self._sum()}; {self._failed} campaigns failed")
        if not self._failed:
            shutil.rmtree(self._scratch)
        return 1 if self._failed else 0

    def _run_campaign(self, number: int) -> None:
        data = self._scratch / f"{number}" / "data"
        data.parent.mkdir()
        try:
            totals = Campaign(data, self._seed * 10_000 + number).run(min(CAMPAIGN_KILLS, self._kills))
        except Failed as failed:
            self._failed += 1
            self._say(f"campaign {number} FAILED, its directory is {data}\n{failed}")
            return
        self._finished[number] = totals
        if self._results is not None:
            line = {"seed": self._seed, "campaign": number, **vars(totals)}
            with self._results.open("a") as file:
                file.write(json.dumps(line) + "\n")
        shutil.rmtree(data.parent)
        self._say(f"campaign {number} done; so far: {self._sum()}")

    def _sum(self) -> Totals:
        total = Totals()
        for one in self._finished.values():
            total.add(one)
        return total

    def _say(self, line: str) -> None:
        print(f"[{time.monotonic() - self._started_s:7.0f} s] {line}", flush=True)


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.crash.kill", description="SIGKILL a server under load, many times."
    )
    parser.add_argument("--kills", type=int, default=CAMPAIGN_KILLS, help="how many, in campaigns of 50")
    parser.add_argument("--seed", type=int, default=1, help="of the clients and the moments")
    parser.add_argument("--results", type=Path, help="file of finished campaigns; a second run goes on behind them")
    arguments = parser.parse_args()
    return Command(arguments.kills, arguments.seed, arguments.results).run()


if __name__ == "__main__":
    sys.exit(main())
