"""What a checkpoint costs those who are served meanwhile: p50 and p99 of requests with and without one.

    python -m tests.bench.checkpoint [--keys 1000000] [--seconds 8] [--rounds 3]

A store of so many keys is served by a real process; `wrk` asks it from 50 connections, GET and durable SET in turn,
first with nothing else going on, then while one checkpoint after the other is made of it. Medians of the rounds, and
their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx

from engine.embedded.recovery import recover
from engine.limits import Limits
from engine.store import ops
from tests.bench import wrk
from tests.bench.peers import holdfast
from tests.harness.process import Server
from wal.files import DiskDirectory

CONNECTIONS = 50
REQUESTS = {
    "GET": """'{"command": "GET ' .. string.format("%020d", math.random(0, KEYS - 1)) .. '"}'""",
    "SET": """'{"command": "SET ' .. string.format("%020d", math.random(0, KEYS - 1)) .. ' value"}'""",
}


def fill(data: Path, keys: int) -> None:
    """Writes a log that sets so many keys of 20 bytes to values of 20 bytes."""
    now_ms = time.time_ns() // 1_000_000
    _, log = recover(DiskDirectory(data), Limits(), wall_ms=now_ms)
    for start in range(0, keys, 1000):
        numbers = range(start, min(start + 1000, keys))
        log.append([ops.pack((ops.PUT, b"%020d" % number, b"%020d" % number, None)) for number in numbers], now_ms)
    log.close()


def measure(server: Server, request: str, keys: int, seconds: int) -> tuple[float, float]:
    """p50 and p99 of one run of wrk, in milliseconds."""
    script = f"KEYS = {keys}\nrequest = function() return wrk.format('POST', '/', nil, {request}) end\n"
    sample = wrk.run(server.url, CONNECTIONS, seconds, script)
    return sample[wrk.P50_MS], sample[wrk.P99_MS]


class Checkpoints:
    """Has one checkpoint made after the other, for as long as the `with` block lasts."""

    def __init__(self, server: Server) -> None:
        self.count = 0
        self._url = server.url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Checkpoints:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            httpx.post(self._url, json={"command": "SET checkpoint now"})  # else there may be nothing to fold
            done = httpx.post(self._url + "/checkpoint", timeout=60).raise_for_status().json()
            self.count += done["segments"] > 0


def main() -> None:
    """Runs the benchmark and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    quiet: dict[str, list[tuple[float, float]]] = {name: [] for name in REQUESTS}
    busy: dict[str, list[tuple[float, float]]] = {name: [] for name in REQUESTS}
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        fill(data, arguments.keys)
        with holdfast(data) as server:
            made = 0
            for _ in range(arguments.rounds):
                for name, request in REQUESTS.items():
                    quiet[name].append(measure(server, request, arguments.keys, arguments.seconds))
                    with Checkpoints(server) as checkpoints:
                        busy[name].append(measure(server, request, arguments.keys, arguments.seconds))
                    made += checkpoints.count
            server.stop()
    print(
        f"{arguments.keys:,} keys, {CONNECTIONS} connections, {made} checkpoints, median of {arguments.rounds} rounds\n"
    )
    print("| request | p50 without | p50 during | p99 without | p99 during | p99 ratio |")
    print("|---|---|---|---|---|---|")
    for name in REQUESTS:
        without, during = (
            [statistics.median(column) for column in zip(*runs, strict=True)] for runs in (quiet[name], busy[name])
        )
        print(
            f"| {name} | {without[0]:.1f} ms | {during[0]:.1f} ms | {without[1]:.1f} ms | {during[1]:.1f} ms"
            f" | {during[1] / without[1]:.2f} |"
        )


if __name__ == "__main__":
    main()
