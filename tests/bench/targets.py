"""Who is measured and how it is asked: servers that start in a directory, and functions that measure them once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import httpx

from tests.bench import clients, wrk
from tests.bench.crowd import Crowd
from tests.bench.measure import Measure, Setup
from tests.bench.peers import (
    Beanstalkd,
    MapServer,
    Redis,
    Webdis,
    build_map_server,
    holdfast,
    resident_bytes,
    wait_until,
)
from tests.bench.wrk import KIB_EACH, PER_S, Request, Sample

WARM_UP_S = 1
REST_S = 3.0
"""Before memory is read: Redis, for one, gives buffers of idle connections back after two seconds."""


class Serving(Protocol):
    """A server that runs."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def pid(self) -> int: ...


Start = Callable[[Setup], AbstractContextManager[Serving]]


# Servers


@contextmanager
def start_holdfast(setup: Setup, *options: str) -> Iterator[Serving]:
    """Holdfast as it is when nobody changes a setting, beside these options."""
    with holdfast(setup.directory / "data", *options) as server:
        yield server


def start_without_door(setup: Setup) -> AbstractContextManager[Serving]:
    """Holdfast behind Hypercorn alone."""
    return start_holdfast(setup, "--no-door")


@contextmanager
def start_webdis(setup: Setup) -> Iterator[Serving]:
    """Webdis, and its Redis."""
    with Redis(setup.directory / "redis") as redis, Webdis(setup.directory / "webdis", redis) as webdis:
        yield webdis


@contextmanager
def start_redis(setup: Setup) -> Iterator[Serving]:
    """Redis by itself."""
    with Redis(setup.directory) as redis:
        yield redis


@contextmanager
def start_beanstalkd(setup: Setup) -> Iterator[Serving]:
    """beanstalkd."""
    with Beanstalkd(setup.directory) as server:
        yield server


@contextmanager
def start_map(setup: Setup, cores: int) -> Iterator[Serving]:
    """The map server on so many cores."""
    with MapServer(setup.directory, build_map_server(setup.directory), cores) as server:
        yield server


# How they are asked over HTTP


@dataclass(frozen=True)
class Speech:
    """How to read a key that is there, to write it, to push and to pop."""

    get: Request
    set: Request
    push: Request
    pop: Request


def line(command: str, holds: str = "") -> Request:
    """A command in Holdfast's line dialect; the map server knows it, too."""
    return Request(body=f'{{"command": "{command}"}}', holds=holds)


def of_holdfast(value: str = "world") -> Speech:
    """Holdfast's way."""
    return Speech(
        line("GET hello", value), line(f"SET hello {value}"), line("QPUSH jobs value"), line("QPOP jobs", "value")
    )


def of_webdis(value: str = "world") -> Speech:
    """Webdis's way: commands in the path, long values in the body."""

    def ask(path: str, holds: str) -> Request:
        return Request(path, method="GET", holds=holds)

    set_ = ask(f"/SET/hello/{value}", "OK") if len(value) < 100 else Request("/SET/hello", value, "PUT", "OK")
    return Speech(ask("/GET/hello", value), set_, ask("/LPUSH/jobs/value", "LPUSH"), ask("/RPOP/jobs", "value"))


# How they are measured


@contextmanager
def with_wrk(
    setup: Setup,
    start: Start,
    requests: Sequence[Request],
    connections: int,
    *,
    before: Sequence[Request] = (),
    commands: int = 1,
) -> Iterator[Measure]:
    """A server, asked by wrk.

    Args:
        setup: where and how long.
        start: starts it.
        requests: sent in turn.
        connections: how many.
        before: sent once, before them.
        commands: how many are in a request.
    """
    with start(setup) as server:
        with httpx.Client(timeout=30, trust_env=False) as client:
            for request in (*before, *requests):
                request.check(client, server.url)

        def take(seconds: int = setup.seconds) -> Sample:
            sample = wrk.run(server.url, connections, seconds, wrk.in_turn(requests))
            return {**sample, PER_S: sample[PER_S] * commands}

        take(WARM_UP_S)
        yield take


@contextmanager
def with_client(setup: Setup, start: Start, client: Callable[[clients.Address, float], Sample]) -> Iterator[Measure]:
    """A server, asked by one of our own clients."""
    with start(setup) as server:
        address = server.host, server.port
        client(address, WARM_UP_S)
        yield lambda: client(address, setup.seconds)


# Crowds


@dataclass(frozen=True)
class Parking:
    """How clients are parked at a server, and how it tells how many are."""

    request: Callable[[Serving], bytes]
    parked: Callable[[Serving], int]


def waiters(server: Serving) -> int:
    """How many are parked at Holdfast."""
    number: int = httpx.get(server.url + "/stats", timeout=30, trust_env=False).json()["waiters"]
    return number


def blocked(server: Serving) -> int:
    """How many are parked at Redis."""
    assert isinstance(server, Redis)
    return int(server.ask("INFO", "clients").partition(b"blocked_clients:")[2].split()[0])


@contextmanager
def crowd(server: Serving, count: int, parking: Parking) -> Iterator[None]:
    """So many clients that are parked at a server, from another process."""
    with Crowd(server.host, server.port, count, parking.request(server), answered=False):
        wait_until(lambda: parking.parked(server) == count, f"{count:,} are parked")
        yield


@contextmanager
def start_crowded(setup: Setup, count: int, parking: Parking) -> Iterator[Serving]:
    """Holdfast with so many parked clients."""
    with start_holdfast(setup) as server, crowd(server, count, parking):
        yield server


@contextmanager
def growing(
    setup: Setup, start: Start, count: int, ping: Callable[[Serving], bytes], parking: Parking | None
) -> Iterator[Measure]:
    """A server whose memory is measured without and with so many connections: parked, or idle after a ping."""
    with start(setup) as server:

        def take() -> Sample:
            with Crowd(server.host, server.port, 1, ping(server), answered=True):
                before = resident_bytes(server.pid)
            present = (
                Crowd(server.host, server.port, count, ping(server), answered=True)
                if parking is None
                else crowd(server, count, parking)
            )
            with present:
                time.sleep(REST_S)
                return {KIB_EACH: (resident_bytes(server.pid) - before) / count / 1024}

        yield take
