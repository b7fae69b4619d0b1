"""Moving house: `holdfast export` and `holdfast import`, from a data directory, a Redis or lines of JSON to another.

What arrives is read back and compared before the command says that it is done; and when it is killed, or fails, the
same command goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TypeVar

import click
import trio

from api.cli.export_lines import LinesSource, export
from api.cli.options import Command, directory, endpoint
from api.cli.reporting import (
    ToolError,
    is_interrupt,
    json_option,
    open_beside,
    print_json,
    print_lines,
    refuse_inside,
    reporting,
    show_progress,
)
from api.cli.streams import ReaderLeft, say, to_stdout
from api.server.exit_codes import ExitCode
from api.server.progress import Progress, Unit, keys_and_queues, megabytes
from engine.moving.directory import DirectoryDestination, DirectorySource
from engine.moving.items import MoveError
from engine.moving.move import Destination, Moved, Source, move
from engine.moving.tally import Tally
from engine.redis.endpoint import Endpoint
from wal.files import DiskDirectory, LockedError, Owner

T = TypeVar("T")
Place = Endpoint | Path
"""A Redis, or a data directory."""

Names = tuple[str, str]
"""Of source and destination, for messages."""


def _place(text: str) -> Place:
    """Reads what begins with `redis://` or `rediss://`, or is a directory."""
    return endpoint(text) if "://" in text else directory(text)


def _present(text: str) -> Place:
    """The same; a directory has to be there."""
    place = _place(text)
    if isinstance(place, Path) and not place.is_dir():
        raise click.BadParameter(f"{place} is no directory")
    return place


@click.command("export", cls=Command)
@click.argument("source", metavar="SOURCE", type=_present)
@click.option("--to", "destination", metavar="DEST", type=_place, help="Write straight into this.")
@click.option("--skip-foreign", is_flag=True, help="Leave out what other programs have in the Redis.")
@json_option
def export_command(source: Place, destination: Place | None, skip_foreign: bool, as_json: bool) -> None:
    """Write all that SOURCE holds to stdout, as lines of JSON, or straight into DEST.

    SOURCE and DEST are data directories, or Redis: redis://host[:port][,host[:port]...], a cluster or a single one.
    DEST must be empty, or not exist. It is read back and compared. When the command is interrupted, the same once more
    goes on where it was. SOURCE is not changed; nobody may write to a Redis meanwhile, and with --to no server
    may run on a directory.

    Exit codes: 0 done, with --to also compared; 1 it cannot be done, or what arrived is not the same; 3 the log of
    SOURCE is damaged; 4 a server holds a directory, or fronts are connected to a Redis.
    """
    if destination is None and as_json:
        raise click.UsageError("--json takes --to: without it the lines are the result")
    if destination is None:
        with reporting(as_json), _Stages() as stages:
            tally = _run(partial(_export_lines, source, skip_foreign, stages))
        say(f"exported {_counts(tally)}, checksum {tally.checksum}")
        return
    with reporting(as_json), _Stages() as stages:
        moved, names = _run(partial(_export_to, source, destination, skip_foreign, stages))
    _report(moved, *names, as_json)


@click.command("import", cls=Command)
@click.argument("destination", metavar="DEST", type=_place)
@click.argument("file", metavar="[FILE]", type=click.File("rb"), default="-")
@json_option
def import_command(destination: Place, file: BinaryIO, as_json: bool) -> None:
    """Write the lines of an export, from FILE or stdin, into DEST.

    DEST is a data directory, or a Redis: redis://host[:port][,host[:port]...]. It must be empty, or not exist. It is
    read back and compared. When the command is interrupted, the same once more goes on where it was.

    Exit codes: 0 done and compared; 1 it cannot be done, the lines are not all there, or what arrived is not the same;
    4 a server holds the directory, or fronts are connected to the Redis.
    """
    with reporting(as_json), _Stages() as stages:
        moved, names = _run(partial(_import_lines, file, destination, stages))
    _report(moved, *names, as_json)


class _Stages(ExitStack):
    """Shows how far the stages of a move are; when one begins, the bar of the one before is finished."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: Progress | None = None

    def stage(self, label: str, unit: Unit) -> Callable[[int, int], None]:
        """Makes what is told how far a stage is."""
        progress = self.enter_context(show_progress(label, unit))

        def show(done: int, total: int) -> None:
            if self._shown is not progress:
                if self._shown is not None:
                    self._shown.finish(is_done=True)
                self._shown = progress
            progress(done, total)

        return show


def _run(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs it under trio; the error of a task comes out as it was raised."""
    try:
        return trio.run(function)
    except BaseExceptionGroup as group:
        if is_interrupt(group):
            raise KeyboardInterrupt from None
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def _export_lines(place: Place, skip_foreign: bool, stages: _Stages) -> Tally:
    out = sys.stdout.buffer

    def write(lines: bytes) -> None:
        with to_stdout():
            out.write(lines)

    try:
        async with _open_source(place, skip_foreign, stages, locked=False) as source:
            tally = await export(source, write, stages.stage("exporting", keys_and_queues))
            with to_stdout():
                out.flush()
    except ReaderLeft:
        raise ToolError("whoever read stdout has left: the export is not whole") from None
    return tally


async def _export_to(place: Place, to: Place, skip_foreign: bool, stages: _Stages) -> tuple[Moved, Names]:
    async with _open_source(place, skip_foreign, stages, locked=True) as source:
        if isinstance(place, Path) and isinstance(to, Path):
            refuse_inside(to, place)
        return await _move(source, to, stages, _owner(place))


async def _import_lines(file: BinaryIO, to: Place, stages: _Stages) -> tuple[Moved, Names]:
    name = getattr(file, "name", None)  # of stdin it is a number, or begins with <
    shown = name if isinstance(name, str) and name != "<stdin>" else "the input"
    return await _move(LinesSource(file, shown), to, stages)


async def _move(source: Source, to: Place, stages: _Stages, owner: Owner | None = None) -> tuple[Moved, Names]:
    async with _open_destination(to, stages, owner) as destination:
        writing = stages.stage("writing", keys_and_queues)
        reading = stages.stage("reading back", keys_and_queues)
        return await move(source, destination, writing, reading), (source.name, destination.name)


@asynccontextmanager
async def _open_source(place: Place, skip_foreign: bool, stages: _Stages, *, locked: bool) -> AsyncIterator[Source]:
    if isinstance(place, Endpoint):
        redis = _redis()
        async with redis.open_masters(place) as masters:
            yield await redis.RedisSource.open(masters, _wall_ms, skip_foreign=skip_foreign)
        return
    try:
        directory = DiskDirectory(place, beside=not locked)
    except LockedError as error:
        raise LockedError(str(place), f"{error.holder}; stop it, or export without --to") from None
    try:
        yield DirectorySource(directory, _wall_ms, stages.stage("reading", megabytes))
    finally:
        directory.close()


@asynccontextmanager
async def _open_destination(place: Place, stages: _Stages, owner: Owner | None) -> AsyncIterator[Destination]:
    if isinstance(place, Endpoint):
        redis = _redis()
        async with redis.open_masters(place) as masters:
            yield redis.RedisDestination(masters, _wall_ms)
        return
    destination = DirectoryDestination(DiskDirectory(place, owner=owner), _wall_ms, stages.stage("reading", megabytes))
    try:
        yield destination
    finally:
        destination.close()


def _owner(place: Place) -> Owner | None:
    """To whom belongs a directory that root makes to hold what was in this place."""
    if isinstance(place, Endpoint):
        return None
    with open_beside(str(place)) as opened:
        return opened.owner


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _redis() -> ModuleType:
    """Redis is spoken to by coredis, which need not be installed."""
    try:
        from engine.moving import redis as moving
    except ImportError:
        raise MoveError(
            "Redis needs the library coredis: run pip install '.[cluster]' in the source directory of Holdfast"
        ) from None
    return moving


def _report(moved: Moved, source: str, destination: str, as_json: bool) -> None:
    """Prints what has come of it, and ends with the exit code for it."""
    if as_json:
        print_json(_result_json(moved, source, destination))
    elif moved.differences:
        say(f"{destination} does NOT hold what {source} does:")
        for difference in moved.differences:
            say(f"  {difference}")
        if any(difference.found > difference.expected for difference in moved.differences):
            say("There is more than was sent: remove that, or all of it, before the same command")
        else:
            say("The same command writes everything once more")
    else:
        print_lines(_result_text(moved, source, destination))
    sys.exit(ExitCode.FAILURE if moved.differences else ExitCode.OK)


def _result_text(moved: Moved, source: str, destination: str) -> Iterator[str]:
    yield f"{source} is in {destination}: {_counts(moved.tally)}"
    if moved.resumed_at:
        yield f"Resumed behind what had been written before: {moved.resumed_at:,} keys and pieces of queues"
    if moved.expired:
        yield f"Expired, and so not there: {_some(moved.expired, 'key')}"
    yield f"Verified: read back and compared, checksum {moved.tally.checksum}"


def _counts(tally: Tally) -> str:
    return f"{_some(tally.keys, 'key')}, {_some(tally.queues.count, 'queue')} with {_some(tally.values, 'value')}"


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _result_json(moved: Moved, source: str, destination: str) -> dict[str, object]:
    return {
        "source": source,
        "destination": destination,
        "keys": moved.tally.keys,
        "queues": moved.tally.queues.count,
        "values": moved.tally.values,
        "checksum": moved.tally.checksum,
        "resumed_at": moved.resumed_at,
        "expired": moved.expired,
        "verified": not moved.differences,
        "differences": [{"kind": one.kind, "expected": one.expected, "found": one.found} for one in moved.differences],
    }
