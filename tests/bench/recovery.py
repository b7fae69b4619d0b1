"""Restart and memory beside Redis: one million SETs, the same keys and values for both, in one run.

    python -m tests.bench.recovery [--records 1000000] [--rounds 5] [--directory /tmp]

Both servers are started as anybody would start them, and say themselves how long they took to load: Redis from its
append-only file, Holdfast from its log. The rounds go through all of them in turn, so that whatever else the machine
does meets each alike. Memory is the resident size of the process just after, and its growth over an empty server.

Needs `redis-server` and `redis-cli`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import httpx

from engine.embedded.recovery import recover
from engine.limits import Limits
from engine.store import ops
from tests.bench.peers import Redis, holdfast, resident_bytes
from wal.files import DiskDirectory

TIME_MS = 1_700_000_000_000
RECORDS_PER_FRAME = (1, 25, 1000)
"""25 is what one group commit holds when 50 clients write at once."""

WITHIN_S = 120.0

_REPLAYED = re.compile(r"replayed ([0-9,]+) records in ([0-9.]+) s")
_LOADED = re.compile(r"DB loaded from append only file: ([0-9.]+) seconds")
_MIB = 1024 * 1024


@dataclass
class Row:
    """What was measured of one way to restart."""

    name: str
    seconds: list[float] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)
    disk_bytes: int = 0

    def add(self, seconds: float, resident_bytes: int) -> None:
        """Adds a round."""
        self.seconds.append(seconds)
        self.resident_bytes.append(resident_bytes)


def pairs(records: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of 20 bytes each, the same in every run."""
    rng = random.Random(1)
    for number in range(records):
        yield b"key:%016d" % number, rng.randbytes(20)


def directory_bytes(path: Path) -> int:
    """Length of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# Redis


def start_redis(directory: Path) -> Redis:
    """A redis-server with an append-only file that is never rewritten, and that it need not sync."""
    return Redis(directory, "no", {"auto-aof-rewrite-percentage": "0"})


def loaded_s(redis: Redis) -> float:
    """How long it says that loading took; 0 when there was nothing to load."""
    found = _LOADED.search(redis.log)
    return float(found[1]) if found else 0.0


def fill_redis(directory: Path, records: int) -> None:
    """Has it write the pairs, one SET each."""
    set_ = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
    stream = b"".join(set_ % (len(key), key, len(value), value) for key, value in pairs(records))
    with start_redis(directory) as redis:
        command = ["redis-cli", "-p", str(redis.port), "--pipe"]
        subprocess.run(command, input=stream, stdout=subprocess.DEVNULL, check=True, timeout=WITHIN_S)


def measure_redis(row: Row, directory: Path) -> None:
    """One start of redis-server on what is in a directory."""
    with start_redis(directory) as redis:
        row.add(loaded_s(redis), resident_bytes(redis.pid))


# Holdfast


def make_log(directory: Path, records: int, per_frame: int) -> None:
    """Writes the pairs to a data directory, closed cleanly."""
    _, log = recover(DiskDirectory(directory), Limits(), wall_ms=TIME_MS)
    frame: list[bytes] = []
    for key, value in pairs(records):
        frame.append(ops.pack((ops.PUT, key, value, None)))
        if len(frame) == per_frame:
            log.append(frame, TIME_MS)
            frame = []
    if frame:
        log.append(frame, TIME_MS)
    log.close()


def make_checkpointed(directory: Path, made: Path) -> None:
    """A data directory with the same data as another one, folded into a snapshot."""
    shutil.copytree(made, directory)
    with holdfast(directory) as server:
        httpx.post(f"{server.url}/checkpoint", timeout=WITHIN_S, trust_env=False).raise_for_status()
        server.stop()


def measure_holdfast(row: Row, made: Path, scratch: Path) -> None:
    """One start of `holdfast serve` on a copy of a data directory."""
    directory = scratch / "data"
    if made.exists():
        shutil.copytree(made, directory)
    with holdfast(directory) as server:
        resident = resident_bytes(server.pid)
        found = _REPLAYED.search(server.log)
        assert found, server.log
        row.add(float(found[2]), resident)
    shutil.rmtree(directory)


# The run


def run(records: int, rounds: int, root: Path) -> list[Row]:
    """Makes the data and measures every way to restart, in turn.

    Returns:
        Redis, Holdfast's logs, its snapshot, and last the two servers without data.
    """
    fill_redis(root / "redis", records)
    logs = {f"log, {count:,} a frame": root / f"log-{count}" for count in RECORDS_PER_FRAME}
    for count, made in zip(RECORDS_PER_FRAME, logs.values(), strict=True):
        make_log(made, records, count)
    logs["after a checkpoint"] = root / "checkpointed"
    make_checkpointed(logs["after a checkpoint"], root / "log-25")

    full = [Row(f"Holdfast, {name}", disk_bytes=directory_bytes(made)) for name, made in logs.items()]
    redis_row = Row("Redis, append-only file", disk_bytes=directory_bytes(root / "redis"))
    empty = [Row("Redis"), Row("Holdfast")]
    for _ in range(rounds):
        measure_redis(redis_row, root / "redis")
        for row, made in zip(full, logs.values(), strict=True):
            measure_holdfast(row, made, root)
        measure_redis(empty[0], root / "redis-empty")
        measure_holdfast(empty[1], root / "nothing", root)
    return [redis_row, *full, *empty]


def report(records: int, rounds: int, rows: list[Row]) -> str:
    """The figures as Markdown: medians, and ratios to Redis."""
    redis, *holdfast, redis_empty, holdfast_empty = rows
    redis_s = median(redis.seconds)
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=([0-9.]+)", version)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}"
    versions = f"Python {platform.python_version()}, Redis {found[1] if found else version}"
    lines = [
        f"{records:,} SETs, keys and values of 20 bytes; medians of {rounds} rounds, in turn. {machine}; {versions}.",
        "",
        "| loads from | seconds | from, to | records/s | speed, Redis = 1 | on disk |",
        "|---|---|---|---|---|---|",
    ]
    for row in (redis, *holdfast):
        seconds = median(row.seconds)
        lines.append(
            f"| {row.name} | {seconds:.3f} | {min(row.seconds):.3f}, {max(row.seconds):.3f} | {records / seconds:,.0f}"
            f" | {redis_s / seconds:.2f} | {row.disk_bytes / _MIB:.0f} MiB |"
        )
    lines += ["", "| resident memory | empty | with the data | grown by |", "|---|---|---|---|"]
    sizes = []
    for name, full_row, empty_row in (("Redis", redis, redis_empty), ("Holdfast", holdfast[1], holdfast_empty)):
        full, empty = median(full_row.resident_bytes) / _MIB, median(empty_row.resident_bytes) / _MIB
        sizes.append((empty, full, full - empty))
        lines.append(f"| {name} | {empty:.0f} MiB | {full:.0f} MiB | {full - empty:.0f} MiB |")
    ratios = [ours / theirs for theirs, ours in zip(*sizes, strict=True)]
    lines.append("| ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs it as the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=None, help="where to put the data; it is removed afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        rows = run(arguments.records, arguments.rounds, Path(scratch))
    print(report(arguments.records, arguments.rounds, rows))


if __name__ == "__main__":
    main()
