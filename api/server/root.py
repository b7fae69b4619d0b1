"""The composition root: the one place where listeners, an engine, the application and signals meet.

    listen -> door: probes (http.py)
      -> engine (embedded.py: lock, replay; or clustered.py: connect)
      -> application -> all requests -> "listening" -> (signal) -> shut down

The port is taken before the data is touched, so a second start on the same port changes nothing. While the log is being
replayed, probes are answered, `/readyz` with how far that is. Clients that send commands meanwhile wait; they are
answered when it is done. "listening" is said when everything that is needed to answer is there: that is the moment to
tell others, and every listener is to be open for all by then.

Shutting down (SIGTERM, SIGINT): no new connections; parked waiters are answered `unavailable`; the engine does what it
was given, and the embedded one closes the log cleanly; the answers have `GRACE_S` to reach their clients. A timer of
the system's, armed at the first signal, ends the process at `EXIT_WITHIN_S` whatever holds it up, and a second signal
ends it at once: both are safe, because whatever was answered is on disk, or was done by Redis.

An engine that fails ends the process the same way, within `FAIL_WITHIN_S`; a failed log with exit code 5.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shlex
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import NoReturn

import trio

from api.app.application import HttpSettings, create_app
from api.http.access import Access
from api.http.probes import Probes
from api.http.service import Service
from api.server.clustered import clustered
from api.server.embedded import embedded
from api.server.exit_codes import ExitCode
from api.server.http import ByDoor, ByHypercorn
from api.server.listeners import complain_seldom, listen, raise_descriptor_limit, url_of
from api.server.orphans import is_first_process, reap_orphans
from api.server.progress import ReplayStopped, Starting
from api.server.settings import ServerSettings, StartError
from api.server.stop import Interrupted, Stop, exit_now
from api.server.words import explain
from engine.face import Face
from engine.redis.errors import ClusterError
from wal.files import DirectoryError, LockedError
from wal.log import LogFailed
from wal.segment import Damage, NewerFormat

FAIL_WITHIN_S = 1
"""From a failed write or sync to the end of the process."""

_logger = logging.getLogger("holdfast.server")


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
    except* Interrupted:
        _logger.info("stopped while connecting; nothing was changed")
    except* (Damage, NewerFormat) as errors:
        code = _report(errors, ExitCode.DAMAGE)
    except* LockedError as errors:
        code = _report(errors, ExitCode.LOCKED)
    except* _EngineFailed as errors:
        code = max(error.code for error in _leaves(errors) if isinstance(error, _EngineFailed))
    except* (StartError, DirectoryError) as errors:
        code = _report(errors, ExitCode.FAILURE)
    except* OSError as errors:
        _logger.critical("cannot serve from %s", settings.engine or settings.data.absolute())
        code = _report(errors, ExitCode.FAILURE)
    except* Exception as errors:
        code = max(code, _report(errors, ExitCode.FAILURE))
    return code


def run(settings: ServerSettings) -> NoReturn:
    """Runs a server, and ends the process with its exit code."""
    exit_now(serve(settings))


_OPERATORS_BUSINESS = (Damage, NewerFormat, LogFailed, LockedError, StartError, DirectoryError, OSError)


def _report(errors: BaseExceptionGroup[BaseException], code: ExitCode) -> ExitCode:
    """Logs what went wrong: one line for what operators can mend, the traceback of a defect."""
    for error in _leaves(errors):
        if isinstance(error, ClusterError):
            _logger.critical("redis: %s", error)
        elif isinstance(error, _OPERATORS_BUSINESS):
            hint = f"; see: holdfast wal verify {shlex.quote(error.directory)}" if isinstance(error, Damage) else ""
            _logger.critical("%s%s", explain(error), hint)
        else:
            _logger.critical("stopped by a defect", exc_info=error)
    return code


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


async def _serve(settings: ServerSettings) -> None:
    # When time is up, what has not reached the disk is a failure; a front has nothing that must.
    stop = Stop(late_code=ExitCode.FAILURE if settings.engine is None else ExitCode.OK)
    with ExitStack() as listening:
        listeners = [listening.enter_context(listener) for listener in listen(settings)]
        urls = [url_of(listener) for listener in listeners]
        raise_descriptor_limit()
        complain_seldom()
        async with trio.open_nursery() as nursery:
            await nursery.start(stop.watch_signals)
            if is_first_process():
                nursery.start_soon(reap_orphans)
            http = _Http(settings, listeners)
            await nursery.start(http.run, stop)

            async def run_engine(engine: Face) -> None:
                stop.engine = engine
                await nursery.start(_run_engine, engine, stop)

            try:
                async with _opened(settings, run_engine, stop, http.starting) as (engine, about):
                    await http.open(engine)
                    if not stop.wished:
                        _announce(settings, urls, about)
                    await stop.wait()
                    engine.close()
                    await stop.engine_ended.wait()
                    await http.done.wait()
            except (ReplayStopped, Interrupted):
                await http.done.wait()  # whoever waited for the start is told
                raise
            nursery.cancel_scope.cancel()


def _opened(
    settings: ServerSettings, run_engine: Callable[[Face], Awaitable[None]], stop: Stop, starting: Starting
) -> AbstractAsyncContextManager[tuple[Face, str]]:
    if settings.engine is None:
        return embedded(settings, run_engine, lambda: stop.wished, starting)
    starting.phase = "connecting to Redis"
    return clustered(settings, run_engine, stop.interrupting)


async def _run_engine(engine: Face, stop: Stop, task_status: trio.TaskStatus[None]) -> None:
    code = ExitCode.OK
    try:
        await engine.run(task_status)
    except* LogFailed as errors:
        code = _fail(stop, errors, ExitCode.LOG_FAILED)
    except* Damage as errors:
        _logger.critical(
            "a checkpoint found damage on disk: what is acknowledged now could not be read again; stopping"
        )
        code = _fail(stop, errors, ExitCode.DAMAGE)
    except* Exception as errors:
        code = _fail(stop, errors, ExitCode.FAILURE)
    if code is not ExitCode.OK:
        raise _EngineFailed(code)
    stop.engine_ended.set()


def _fail(stop: Stop, errors: BaseExceptionGroup[BaseException], code: ExitCode) -> ExitCode:
    """Starts the timer, then reports why the engine came to a bad end: whoever reads the log may hold us up."""
    stop.arm(FAIL_WITHIN_S, code)
    return _report(errors, code)


class _Http:
    """HTTP for clients, before and after there is an engine.

    Attributes:
        starting: how far the start is, for `/readyz`.
        done: set when everybody has their answer, after the wish to stop.
    """

    def __init__(self, settings: ServerSettings, listeners: list[socket.socket]) -> None:
        access = Access(settings.token, settings.host, frozenset(settings.allowed_hosts))
        self.starting = Starting()
        self.done = trio.Event()
        self._settings = HttpSettings(settings.limits, access)
        self._service = Service(None, settings.limits)
        self._probes = Probes(self.starting.readiness)
        idle_s = settings.idle_timeout_s
        self._way: ByDoor | ByHypercorn = ByHypercorn(listeners, idle_s)
        if settings.door:
            self._way = ByDoor(self._service, self._probes, self._settings, listeners, keep_alive_s=idle_s)

    async def run(self, stop: Stop, task_status: trio.TaskStatus[None]) -> None:
        """Serves clients until the wish to stop, and until those who were being served have their answers."""
        await self._way.serve(stop.wait, task_status)
        self.done.set()

    async def open(self, engine: Face) -> None:
        """Has commands done; returns when nothing waits for the start any more."""
        self._service.engine = engine
        self._probes.readiness = engine.readiness
        await self._way.open(create_app(engine, self._settings, self._service))


def _announce(settings: ServerSettings, urls: list[str], about: str) -> None:
    _logger.info(
        "holdfast %s listening on %s, %s, %s",
        importlib.metadata.version("holdfast"),
        " and ".join(urls),
        about,
        "no token" if settings.token is None else "token required",
    )
