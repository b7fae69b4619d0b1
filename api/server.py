"""The composition root: the one place where directory, log, engine, application and listeners meet.

    listen -> lock the data directory -> replay -> engine -> HTTP (api/front.py) -> (signal) -> shut down

The port is taken before the data is touched, so a second start on the same port changes nothing. Clients that connect
while the log is being replayed wait; they are answered when it is.

Shutting down (SIGTERM, SIGINT): no new connections; parked waiters are answered `unavailable`; the engine does what it
was given and closes the log cleanly; the answers have `GRACE_S` to reach their clients. A timer of the system's, armed
at the first signal, ends the process at `EXIT_WITHIN_S` whatever holds it up, and a second signal ends it at once: both
are safe, because whatever was answered is on disk.

A failed log ends the process the same way, with exit code 5, within `FAIL_WITHIN_S`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import importlib.metadata
import ipaddress
import json
import logging
import os
import resource
import shlex
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import trio

from api.access import Access
from api.app import HttpSettings, create_app
from api.front import serve_door, serve_hypercorn
from api.progress import ReplayProgress, ReplayStopped
from api.sockets import BACKLOG, tune
from engine.actor import Engine
from engine.checkpointer import in_child
from engine.collector import Collector
from engine.committer import FsyncPolicy
from engine.limits import Limits
from engine.recovery import recover
from engine.state import State
from wal.files import DirectoryError, DiskDirectory, LockedError
from wal.log import Log, LogFailed, segment_bytes_for
from wal.segment import Damage, NewerFormat

EXIT_WITHIN_S = 5
"""From the first signal to the end of the process, whatever clients or disks do."""

FAIL_WITHIN_S = 1
"""From a failed write or sync to the end of the process."""

SAME_SIGNAL_S = 0.3
"""A signal that comes again so soon is the same one."""

SELDOM_S = 30.0
"""Between two lines about the same lasting trouble."""

_logger = logging.getLogger("holdfast.server")


class ExitCode(enum.IntEnum):
    """How `holdfast serve` ends."""

    OK = 0
    FAILURE = 1
    DAMAGE = 3
    LOCKED = 4
    LOG_FAILED = 5


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `holdfast serve` was told.

    Attributes:
        data: the data directory; made when it does not exist.
        host: name or address to listen on.
        port: 0 lets the system choose.
        fsync: when commits are synced.
        token: asked of every client; None asks for none.
        insecure: listen beyond loopback without a token.
        allowed_hosts: names besides the bound one that a Host header may have.
        limits: of commands, bodies and memory.
        segment_bytes_max: size at which segments of the log roll; None suits the disk.
        door: whether clients are served by the door, or by Hypercorn alone.
    """

    data: Path
    host: str = "127.0.0.1"
    port: int = 8080
    fsync: FsyncPolicy = FsyncPolicy.ALWAYS
    token: str | None = None
    insecure: bool = False
    allowed_hosts: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    segment_bytes_max: int | None = None
    door: bool = True


class StartError(Exception):
    """The server cannot start as it was told to."""


class _EngineFailed(Exception):
    """The engine came to a bad end, which was reported when it happened: what comes now may hold the exit up.

    Attributes:
        code: with which the process ends.
    """

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def serve(settings: ServerSettings) -> ExitCode:
    """Runs a server until a signal ends it.

    Returns:
        The exit code; what went wrong has been logged.
    """
    code = ExitCode.OK
    try:
        trio.run(_serve, settings)
    except* ReplayStopped:
        _logger.info("stopped while replaying; nothing was changed")
    except* (Damage, NewerFormat) as errors:
        code = _report(errors, ExitCode.DAMAGE)
    except* LockedError as errors:
        code = _report(errors, ExitCode.LOCKED)
    except* _EngineFailed as errors:
        code = max(error.code for error in _leaves(errors) if isinstance(error, _EngineFailed))
    except* (StartError, DirectoryError) as errors:
        code = _report(errors, ExitCode.FAILURE)
    except* OSError as errors:
        _logger.critical("cannot serve from %s", settings.data.absolute())
        code = _report(errors, ExitCode.FAILURE)
    except* Exception as errors:
        code = max(code, _report(errors, ExitCode.FAILURE))
    return code


def run(settings: ServerSettings) -> NoReturn:
    """Runs a server, and ends the process with its exit code.

    Without the interpreter's own tear-down: freeing a store of millions of keys one by one takes seconds.
    """
    _exit(serve(settings))


_OPERATORS_BUSINESS = (Damage, NewerFormat, LogFailed, LockedError, StartError, DirectoryError, OSError)


def _report(errors: BaseExceptionGroup[BaseException], code: ExitCode) -> ExitCode:
    """Logs what went wrong: one line for what operators can mend, the traceback of a defect."""
    for error in _leaves(errors):
        if isinstance(error, _OPERATORS_BUSINESS):
            hint = f"; see: holdfast wal verify {shlex.quote(error.directory)}" if isinstance(error, Damage) else ""
            _logger.critical("%s%s", error, hint)
        else:
            _logger.critical("stopped by a defect", exc_info=error)
    return code


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _serve(settings: ServerSettings) -> None:
    listeners = _listen(settings)
    try:
        directory = DiskDirectory(settings.data)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    _raise_descriptor_limit()
    logging.getLogger("trio.serve_listeners").addFilter(_SeldomFilter())
    async with trio.open_nursery() as nursery:
        stop = _Stop()
        await nursery.start(stop.watch_signals)
        started_s = time.monotonic()
        state, log = await _replay(settings, directory, stop)
        replay_s = time.monotonic() - started_s
        with Collector(lambda: state.queue_count):
            engine = Engine(
                state,
                log,
                settings.limits,
                fsync=settings.fsync,
                wall_ms=time.time_ns() // 1_000_000,
                fold=in_child(directory.path),
                watches_files=True,
            )
            stop.engine = engine
            await nursery.start(_run_engine, engine, stop)
            _announce(settings, listeners, directory, log, replay_s)
            http_done = trio.Event()
            nursery.start_soon(_run_http, settings, engine, listeners, stop, http_done)
            await stop.wait()
            engine.close()
            await stop.engine_ended.wait()
            await http_done.wait()
            nursery.cancel_scope.cancel()
    _logger.info("stopped, everything is on disk")


class _Stop:
    """The wish to stop, wherever it comes from, and the timer that enforces it."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.engine_ended = trio.Event()
        self.wished = False
        self._wished_s = 0.0
        self._event = trio.Event()

    async def wait(self) -> None:
        """Waits for the wish."""
        await self._event.wait()

    async def watch_signals(self, task_status: trio.TaskStatus[None]) -> None:
        """Turns signals into the wish; the second one ends the process."""
        watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
        with trio.open_signal_receiver(*watched) as signals:
            task_status.started()
            await self._follow(signals)

    async def _follow(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGUSR1:
                _logger.info("%s: %s", name, self._describe())
            elif number == signal.SIGHUP:
                _logger.info("%s: nothing to reload, going on", name)
            elif self.wished and time.monotonic() < self._wished_s + SAME_SIGNAL_S:
                pass  # sent to the process and to its group, as timeout(1) does
            elif self.wished:
                _logger.warning("%s again: exiting now", name)
                _exit(128 + number)
            else:
                self.wish()
                _logger.info("%s: shutting down", name)

    def _describe(self) -> str:
        return "replaying" if self.engine is None else json.dumps(dataclasses.asdict(self.engine.statistics()))

    def wish(self) -> None:
        """Starts the shutdown and the timer."""
        self.wished = True
        self._wished_s = time.monotonic()
        # Ten thousand clients that leave at once are garbage for seconds of collector runs; the process ends anyway.
        gc.disable()
        self._event.set()
        self.arm(EXIT_WITHIN_S, ExitCode.FAILURE)

    def arm(self, within_s: float, code: ExitCode) -> None:
        """Ends the process after so many seconds, with 0 if everything is on disk by then, with `code` if not.

        A timer that would end it earlier stays as it is.
        """

        def end(_number: int, _frame: FrameType | None) -> None:
            closed = (self.engine is None or self.engine_ended.is_set()) and code not in (
                ExitCode.LOG_FAILED,
                ExitCode.DAMAGE,
            )
            # Not by the log: that nobody reads it may be what holds us up.
            with contextlib.suppress(OSError):
                os.set_blocking(2, False)
                os.write(2, b"something held the exit up for %d s; ending now\n" % within_s)
            os._exit(ExitCode.OK if closed else code)

        left_s = signal.getitimer(signal.ITIMER_REAL)[0]
        if 0 < left_s < within_s:
            return
        signal.signal(signal.SIGALRM, end)
        signal.setitimer(signal.ITIMER_REAL, within_s)

    def fail(self, errors: BaseExceptionGroup[BaseException], code: ExitCode) -> ExitCode:
        """Starts the timer, then reports why the engine came to a bad end: whoever reads the log may hold us up."""
        self.arm(FAIL_WITHIN_S, code)
        return _report(errors, code)


class _SeldomFilter(logging.Filter):
    """Lets a repeated complaint through once in `SELDOM_S`, and on one line.

    trio says ten times a second, each time with a traceback, that it cannot accept for want of descriptors.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next_s = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Says whether a record is written."""
        if time.monotonic() < self._next_s:
            return False
        self._next_s = time.monotonic() + SELDOM_S
        if record.exc_info and record.exc_info[1] is not None:
            record.msg, record.args = "cannot accept connections: %s", (record.exc_info[1],)
            record.exc_info = None
        return True


def _exit(code: int) -> NoReturn:
    logging.shutdown()
    os._exit(code)


async def _run_engine(engine: Engine, stop: _Stop, task_status: trio.TaskStatus[None]) -> None:
    code = ExitCode.OK
    try:
        await engine.run(task_status)
    except* LogFailed as errors:
        code = stop.fail(errors, ExitCode.LOG_FAILED)
    except* Damage as errors:
        _logger.critical(
            "a checkpoint found damage on disk: what is acknowledged now could not be read again; stopping"
        )
        code = stop.fail(errors, ExitCode.DAMAGE)
    except* Exception as errors:
        code = stop.fail(errors, ExitCode.FAILURE)
    if code is not ExitCode.OK:
        raise _EngineFailed(code)
    stop.engine_ended.set()


async def _run_http(
    settings: ServerSettings, engine: Engine, listeners: list[socket.socket], stop: _Stop, done: trio.Event
) -> None:
    access = Access(settings.token, settings.host, frozenset(settings.allowed_hosts))
    app = create_app(engine, HttpSettings(settings.limits, access))
    await (serve_door if settings.door else serve_hypercorn)(app, listeners, stop.wait)
    done.set()


async def _replay(settings: ServerSettings, directory: DiskDirectory, stop: _Stop) -> tuple[State, Log]:
    """Replays in a thread, so that signals are heard and the progress bar moves."""

    def replay() -> tuple[State, Log]:
        with ReplayProgress(lambda: stop.wished) as progress:
            return recover(
                directory,
                settings.limits,
                wall_ms=time.time_ns() // 1_000_000,
                segment_bytes_max=settings.segment_bytes_max or segment_bytes_for(directory.capacity_bytes()),
                progress=progress,
            )

    try:
        return await trio.to_thread.run_sync(replay)
    except BaseException:
        directory.close()
        raise


def _announce(
    settings: ServerSettings, listeners: list[socket.socket], directory: DiskDirectory, log: Log, replay_s: float
) -> None:
    records = log.recovery.records
    _logger.info(
        "holdfast %s listening on %s, data in %s, replayed %s records in %.3f s (%s/s), fsync %s, %s",
        importlib.metadata.version("holdfast"),
        " and ".join(f"http://{_authority(listener)}" for listener in listeners),
        directory.path,
        f"{records:,}",
        replay_s,
        f"{records / max(replay_s, 1e-6):,.0f}",
        settings.fsync.value,
        "no token" if settings.token is None else "token required",
    )


def _listen(settings: ServerSettings) -> list[socket.socket]:
    """Takes the port on every address the host name has."""
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"cannot listen on {settings.host}: {error.strerror}") from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    _check_exposure(settings, [str(address[0]) for _, address in addresses])
    listeners: list[socket.socket] = []
    try:
        for family, address in addresses:
            listeners.append(_listener(family, address))
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise StartError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror} (--bind)") from None
    return listeners


def _listener(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        tune(listener)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_exposure(settings: ServerSettings, addresses: list[str]) -> None:
    """Beyond loopback, everybody who reaches the port could read and write: that takes a token."""
    exposed = [address for address in addresses if not ipaddress.ip_address(address.split("%")[0]).is_loopback]
    if not exposed or settings.token is not None:
        return
    if not settings.insecure:
        raise StartError(
            f"{settings.host} is not a loopback address: set --token so that only clients who know it get in,"
            " or --insecure to let everybody in"
        )
    _logger.warning("INSECURE: no token: everybody who can reach this machine may read and write all data")


def _authority(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _raise_descriptor_limit() -> None:
    """Takes as many descriptors as the system lets us have: each parked client needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
