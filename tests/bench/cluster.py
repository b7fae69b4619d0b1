"""Fronts on a Redis Cluster beside the embedded engine; the report goes into docs/benchmarks.md.

    python -m tests.bench.cluster [--rounds 3] [--seconds 2] [--only get 'waiting-*'] [--data DIR]

A real cluster of three masters and three replicas, the embedded engine and the fronts all run at once, each a process
of its own; they are asked in turn, in one run. Two fronts are asked by two processes of wrk. With `--only` nothing is
written, only printed. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path

import httpx

from tests.bench import clients, wrk
from tests.bench.__main__ import PAGE, end, say
from tests.bench.crowd import allow_many_files
from tests.bench.machine import describe
from tests.bench.measure import Measure, Result, Row, Setup, Target, measure
from tests.bench.peers import cpu_s, holdfast, missing_packages
from tests.bench.report import COLUMNS as USUAL_COLUMNS
from tests.bench.report import CPU, FROM_TO, Column, insert, table
from tests.bench.targets import line
from tests.bench.waiting import COLUMNS as WAITING_COLUMNS
from tests.bench.waiting import waiting_rows
from tests.bench.wrk import CLIENT, PER_S, Request, Sample
from tests.harness.process import ROOT, Server
from tests.harness.redis import RedisCluster

CONNECTIONS = 50
PIPELINED = 100
KEYS = 300
"""Asked for in turn: a hundred for each master."""

QUEUES = 30
QUEUED = 50
"""Values in each queue beforehand: a pop may overtake the push that was sent before it."""

WARM_UP_S = 1
NODE_TIMEOUT_MS = 60_000
"""On a busy machine nodes sleep long, and nobody is to be promoted."""

NAMES = ("get", "set", "pipeline", "queue", "hand-over", "waiting-many", "waiting-one", "waiting-told")
"""Of the rows: these are made when the processes run, and the command line is read before."""

NEEDED = ("redis-server", "wrk", "setpriv")
MARKS = (
    "<!-- measured on a cluster: `python -m tests.bench.cluster` replaces what stands from here to the end mark -->",
    "<!-- end of measured on a cluster -->",
)

SERVER_US, REDIS_US, CORE_PER_S = "server_us", "redis_us", "core_per_s"
COLUMNS = {
    **USUAL_COLUMNS,
    SERVER_US: Column("Holdfast's CPU", "{:.1f} µs"),
    REDIS_US: Column("Redis's CPU", "{:.1f} µs"),
    CORE_PER_S: Column("a core does", "{:,.0f}"),
    **WAITING_COLUMNS,
}

CPU_OF = (
    "CPU is for one command: Holdfast's that of all fronts, Redis's that of all six nodes, with what replicas and files"
    ' take. "A core does" so many commands a second, by that, if a front has one to itself.'
)
TWO_FRONTS = (
    "Two fronts have a client each, with half of the connections: the clients' CPU is the sum, latencies are those of"
    " the slower front."
)
RATIO = (
    '"Embedded / it" is the ratio of the first figure of the embedded engine and of the line; so with "1 front / it".'
)


Start = Callable[..., AbstractContextManager[Measure]]
"""Takes a setup, and which way."""


@dataclass(frozen=True)
class Way:
    """A way to run Holdfast.

    Attributes:
        name: for the tables.
        servers: the load is shared among them.
        appendfsync: of the cluster meanwhile; None where it has no part.
    """

    name: str
    servers: tuple[Server, ...]
    appendfsync: str | None = None


class House:
    """All processes that are measured, from `start` until the stack is closed.

    Args:
        directory: of their data.
        stack: ends them.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        options = ("--appendonly", "yes", "--appendfsync", "everysec")
        self.cluster = stack.enter_context(
            RedisCluster(directory / "cluster", *options, node_timeout_ms=NODE_TIMEOUT_MS)
        )
        self.redis_pids = [int(node.info("server")["process_id"]) for node in self.cluster.nodes]

        def start(name: str, *options: str, engine: str | None = None) -> Server:
            return stack.enter_context(holdfast(directory / name, *options, engine=engine))

        url = self.cluster.url
        embedded, relaxed = start("embedded"), start("relaxed", "--fsync", "interval")
        one, other = start("front-1", engine=url), start("front-2", engine=url)
        careful = start("front-3", "--min-replicas", "1", engine=url)
        self.embedded = Way("embedded", (embedded,))
        self.relaxed = Way("embedded, `--fsync interval`", (relaxed,))
        self.one = Way("1 front", (one,), "everysec")
        self.two = Way("2 fronts", (one, other), "everysec")
        self.one_always = Way("1 front, `appendfsync always`", (one,), "always")
        self.two_always = Way("2 fronts, `appendfsync always`", (one, other), "always")
        self.one_careful = Way("1 front, `--min-replicas 1`", (careful,), "everysec")

    def prepare(self) -> None:
        """Stores what is asked for, and warms every server up."""
        warm_up = wrk.in_turn([*gets(), *sets()])
        for way in (self.embedded, self.relaxed, self.two, self.one_careful):
            for server in way.servers:
                with httpx.Client(timeout=30, trust_env=False) as client:
                    for request in [*sets(), *gets(), *queued()]:
                        request.check(client, server.url)
                wrk.run(server.url, CONNECTIONS, WARM_UP_S, warm_up)

    def set_appendfsync(self, policy: str | None) -> None:
        """Has all nodes keep their files in this way."""
        if policy is not None:
            for node in self.cluster.nodes:
                node.do("CONFIG", "SET", "appendfsync", policy)


# How they are asked


def gets() -> list[Request]:
    """All keys."""
    return [line(f"GET key:{number}", "world") for number in range(KEYS)]


def sets() -> list[Request]:
    """The same."""
    return [line(f"SET key:{number} world") for number in range(KEYS)]


def pipeline() -> Request:
    """Keys of many slots, so that every master has its part."""
    commands = ", ".join(f'{{"command": "SET key:{number} world"}}' for number in range(PIPELINED))
    return Request("/pipeline", f"[{commands}]", holds="{}")


def pushes_and_pops() -> list[Request]:
    """One of each, for queue after queue."""
    return [
        line(f"{what}") for number in range(QUEUES) for what in (f"QPUSH jobs:{number} value", f"QPOP jobs:{number}")
    ]


def queued() -> list[Request]:
    """What is pushed beforehand."""
    values = " ".join(["value"] * QUEUED)
    return [line(f"QPUSH jobs:{number} {values}") for number in range(QUEUES)]


def run_wrk(servers: Sequence[Server], connections: int, seconds: int, requests: Sequence[Request]) -> Sample:
    """Has all servers asked at once, each by a wrk of its own.

    Returns:
        Requests a second of all together; latencies are those of the worst; the clients' CPU is that of all.
    """
    script = wrk.in_turn(requests)
    with ThreadPoolExecutor(len(servers)) as pool:
        before_s = wrk.children_cpu_s()
        runs = [pool.submit(wrk.run, server.url, connections // len(servers), seconds, script) for server in servers]
        samples = [run.result() for run in runs]
        used_s = wrk.children_cpu_s() - before_s
    return together(samples) | {CLIENT: used_s / seconds}


def together(samples: Sequence[Sample]) -> Sample:
    """Several runs at once as one: rates are added up, of all else the largest counts."""
    return {name: (sum if name == PER_S else max)([sample[name] for sample in samples]) for name in samples[0]}


@contextmanager
def with_wrk(setup: Setup, house: House, way: Way, requests: Sequence[Request], commands: int = 1) -> Iterator[Measure]:
    """Servers asked by wrk, and what CPU time each command takes them and Redis."""

    def take() -> Sample:
        house.set_appendfsync(way.appendfsync)
        pids = [server.pid for server in way.servers]
        redis_pids = house.redis_pids if way.appendfsync else []
        server_s, redis_s = sum(map(cpu_s, pids)), sum(map(cpu_s, redis_pids))
        sample = run_wrk(way.servers, CONNECTIONS, setup.seconds, requests)
        sample[PER_S] *= commands
        server_us = (sum(map(cpu_s, pids)) - server_s) * 1e6 / (sample[PER_S] * setup.seconds)
        sample |= {SERVER_US: server_us, CORE_PER_S: 1e6 / server_us}
        if redis_pids:
            sample[REDIS_US] = (sum(map(cpu_s, redis_pids)) - redis_s) * 1e6 / (sample[PER_S] * setup.seconds)
        return sample

    yield take


@contextmanager
def with_hand_over(setup: Setup, house: House, way: Way) -> Iterator[Measure]:
    """A push at the last of the servers for one who waits at the first."""
    first, last = ((server.host, server.port) for server in (way.servers[0], way.servers[-1]))

    def take() -> Sample:
        house.set_appendfsync(way.appendfsync)
        return clients.holdfast_hand_over(first, setup.seconds, last)

    yield take


# What is measured


def all_rows(house: House) -> list[Row]:
    """All of them, in the order of the report."""
    few = [house.embedded, house.one, house.two, house.one_always, house.one_careful]
    many = [house.embedded, house.relaxed, house.one, house.two, house.one_always, house.two_always, house.one_careful]
    asked = partial(partial, with_wrk, house=house)
    title = f"{CONNECTIONS} connections"
    in_pipelines = f"`SET`s in `/pipeline`s of {PIPELINED}, of many slots"
    note = "Commands a second; latencies are those of a request."
    return [
        row("get", "`GET`", title, [house.embedded, house.one, house.two], asked(requests=gets())),
        row("set", "`SET`", title, many, asked(requests=sets())),
        row("pipeline", in_pipelines, title, few, asked(requests=[pipeline()], commands=PIPELINED), note),
        row("queue", f"`QPUSH` and `QPOP` in turn, {QUEUES} queues", title, few, asked(requests=pushes_and_pops())),
        row(
            "hand-over",
            "Hand-over from `QPUSH` to a parked `BQPOP`",
            "one at a time",
            few,
            partial(with_hand_over, house=house),
            "2 fronts: one waits at the one, and another one pushes at the other.",
        ),
        *waiting_rows(house.cluster),
    ]


def row(name: str, group: str, title: str, ways: Sequence[Way], start: Start, note: str = "") -> Row:
    """A question that is put to several ways, of which the first is the embedded engine."""
    targets = [Target(way.name, partial(start, way=way)) for way in ways]
    return Row(name, group, title, targets, ways[0].name, note)


def render(results: Sequence[Result], machine: Sequence[str], rounds: int, seconds: int) -> str:
    """The whole report."""
    lines = [
        *(f"- {line}" for line in machine),
        f"- {rounds} rounds of {seconds} s, in turn. Figures are medians; {FROM_TO}",
        f"- {CPU}",
        f"- {TWO_FRONTS}",
        f"- {CPU_OF}",
        f"- {RATIO}",
    ]
    for group, rows in groupby(results, key=lambda result: result.row.group):
        several = list(rows)
        note = next((result.row.note for result in several if result.row.note), "")
        lines += ["", f"### {group}", "", *([note, ""] if note else []), *shown(several)]
    return "\n".join(lines)


def shown(results: Sequence[Result]) -> Iterator[str]:
    """The table of a group of rows."""
    return table(results, COLUMNS, f"{results[0].row.ours} / it")


# The run


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--seconds", type=int, default=2, help="how long each measurement takes (2)")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", default=["*"], help=f"only these, * for any: {' '.join(NAMES)}"
    )
    parser.add_argument("--data", type=Path, help="where the servers keep their data; it is removed afterwards")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    for pattern in arguments.only:
        if not any(fnmatchcase(name, pattern) for name in NAMES):
            parser.error(f"there is no row {pattern}")
    return arguments


def run(rows: Sequence[Row], setup: Setup, rounds: int) -> list[Result]:
    """Measures the rows one after the other."""
    results = []
    for one in rows:
        started_s = time.monotonic()
        results.append(measure(one, setup, rounds))
        figures = "\n".join(shown(results[-1:]))
        say(f"\n{one.group}, {one.title} ({time.monotonic() - started_s:.0f} s)\n\n{figures}")
    return results


def main() -> None:
    """Runs it as the module says."""
    arguments = parse_arguments()
    if missing := missing_packages(NEEDED):
        raise SystemExit(f"these are needed:  apt-get install {' '.join(missing)}")
    signal.signal(signal.SIGTERM, end)
    allow_many_files()
    started_s = time.monotonic()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=arguments.data, prefix="holdfast-bench-")))
        machine = describe(directory, ("Redis", "wrk"))
        say("\n".join(machine))
        house = House(directory, stack)
        house.prepare()
        rows = [row for row in all_rows(house) if any(fnmatchcase(row.name, only) for only in arguments.only)]
        results = run(rows, Setup(directory, arguments.seconds), arguments.rounds)
    report = render(results, machine, arguments.rounds, arguments.seconds)
    print(report)
    if arguments.only == ["*"]:
        PAGE.write_text(insert(PAGE.read_text(), report, MARKS))
        say(f"written: {PAGE.relative_to(ROOT)}")
    say(f"\n{(time.monotonic() - started_s) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
