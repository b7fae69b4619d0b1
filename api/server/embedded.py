"""The engine in this process, put together: lock the data directory -> replay -> run."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from api.server.progress import ReplayProgress, Starting, megabytes
from api.server.settings import ServerSettings, StartError, size_text
from engine.collector import Collector
from engine.embedded.child import Child
from engine.embedded.engine import Engine
from engine.embedded.recovery import recover
from engine.store.state import State
from wal.files import DiskDirectory
from wal.log import Log, segment_bytes_for
from wal.replay import IMPORT_NAME, unfinished_import

_logger = logging.getLogger("holdfast.server")


def _segment_bytes(settings: ServerSettings, directory: DiskDirectory) -> int:
    """The size of segments; raises StartError for one that the disk can never hold."""
    disk_bytes = directory.capacity_bytes()
    if settings.segment_bytes_max is not None and settings.segment_bytes_max > disk_bytes:
        raise StartError(
            f"--segment-size {size_text(settings.segment_bytes_max)} is more than the whole disk of {directory.path}"
            f" has, {megabytes(disk_bytes)}; leave it out, and it suits the disk"
        )
    return settings.segment_bytes_max or segment_bytes_for(disk_bytes)


@asynccontextmanager
async def embedded(
    settings: ServerSettings,
    run: Callable[[Engine], Awaitable[None]],
    is_stopping: Callable[[], bool],
    starting: Starting,
) -> AsyncIterator[tuple[Engine, str]]:
    """Opens the data directory and runs an engine on it.

    Args:
        settings: directory, limits, fsync policy, size of segments.
        run: has the engine run in the background, and returns when it does; it must have ended in the end.
        is_stopping: whether the replay is to be given up.
        starting: told how far the replay is.

    Yields:
        The engine, and words for the start line.

    Raises:
        LockedError: another server holds the directory.
        DirectoryError: the directory is none.
        StartError: an import into it is not finished.
        Damage, NewerFormat: the log cannot be replayed.
        ReplayStopped: the replay was given up.
        OSError: the disk fails.
    """
    directory = DiskDirectory(settings.data)
    started_s = time.monotonic()
    state, log = await _replay(settings, directory, is_stopping, starting)
    replay_s = time.monotonic() - started_s
    with Collector(lambda: state.queue_count):
        engine = Engine(
            state,
            log,
            settings.limits,
            fsync=settings.fsync,
            wall_ms=time.time_ns() // 1_000_000,
            fold=Child(directory.path),
            watches_files=True,
        )
        await run(engine)
        records = log.recovery.records
        replayed = f"{records:,} records in {replay_s:.3f} s ({records / max(replay_s, 1e-6):,.0f}/s)"
        found = "new, empty" if log.recovery.is_new else f"replayed {replayed}"
        yield engine, f"data in {directory.path}, {found}, fsync {settings.fsync.value}"
    _logger.info("stopped, everything is on disk")


async def _replay(
    settings: ServerSettings, directory: DiskDirectory, is_stopping: Callable[[], bool], starting: Starting
) -> tuple[State, Log]:
    """Replays in a thread, so that signals are heard and the progress bar moves."""

    def replay() -> tuple[State, Log]:
        if IMPORT_NAME in directory.names():
            raise StartError(unfinished_import(directory.path))
        starting.phase = "replaying the log"
        with ReplayProgress(is_stopping, starting) as progress:
            return recover(
                directory,
                settings.limits,
                wall_ms=time.time_ns() // 1_000_000,
                segment_bytes_max=_segment_bytes(settings, directory),
                progress=progress,
            )

    try:
        return await trio.to_thread.run_sync(replay)
    except BaseException:
        directory.close()
        raise
