"""The tools for data directories: `holdfast wal verify | dump | repair` and `holdfast backup`.

They read a data directory, also beside a running server, and change nothing in it; `repair --fix` does, and
takes the lock. Results go to stdout, progress and errors to stderr; with `--json` stdout holds JSON and nothing else.

Exit codes are those of `serve`: 0 fine, 1 cannot, 2 bad usage, 3 the log is damaged, 4 a server holds the directory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import click

from api.cli import output
from api.cli.options import Command
from api.cli.options import directory as path_of_directory
from api.cli.reporting import (
    ToolError,
    json_option,
    open_beside,
    print_json,
    print_lines,
    refuse_inside,
    reporting,
    show_progress,
)
from api.cli.streams import ReaderLeft, to_stdout
from api.server.exit_codes import ExitCode
from engine.embedded.recovery import applying
from engine.store import ops
from engine.store.state import State
from wal.files import DiskDirectory
from wal.frame import Frame, Record
from wal.replay import Apply, unfinished_import
from wal.tools.backup import Backup, NotEmpty, backup
from wal.tools.check import Report, verify
from wal.tools.dump import Entry, dump
from wal.tools.repair import Plan, plan_repair, repair

_IN_EMPTY_ONES = ("LOCK", "lost+found")
"""What a directory may hold that a backup goes to: the latter is in the root of a fresh disk."""

_directory_argument = click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))


@contextmanager
def _replaying() -> Iterator[Callable[[], Apply]]:
    """Yields what makes an empty state, and what applies frames to it."""
    gc.disable()  # a state has no cycles, but the collector would look for them again and again
    try:
        yield lambda: applying(State())
    finally:
        gc.enable()


def _check_shapes(frame: Frame) -> None:
    """Applies nothing, but refuses records that are no ops."""
    for record in frame.records:
        ops.check(record)


@click.group("wal")
def wal_commands() -> None:
    """Look at the log of a data directory, and repair it."""


# Verify


@wal_commands.command("verify", cls=Command)
@_directory_argument
@click.option("--no-apply", is_flag=True, help="Check the bytes only, which takes little memory.")
@json_option
def verify_command(directory: str, no_apply: bool, as_json: bool) -> None:
    """Read a log and say what it holds and what is wrong with it.

    Checks all that a start checks: every checksum, that nothing is missing or foreign, and that every record can be
    applied; the latter takes the memory that the data take. Changes nothing; a server may be running.

    Exit codes: 0 a server starts on it, 1 it cannot be read, or an import into it is not finished, 3 it is damaged.
    """
    with (
        reporting(as_json),
        open_beside(directory) as opened,
        _replaying() as replaying,
        show_progress("verifying") as progress,
    ):
        report = verify(opened, (lambda: _check_shapes) if no_apply else replaying, progress)
    if as_json:
        print_json(output.report_json(report))
    else:
        print_lines(output.report_text(report))
        print_lines(_verdict(report, applied=not no_apply))
    refused = ExitCode.FAILURE if report.is_unfinished else ExitCode.OK
    sys.exit(ExitCode.DAMAGE if report.damage else refused)


def _verdict(report: Report, *, applied: bool) -> Iterator[str]:
    if report.damage:
        places = "1 place" if len(report.damage) == 1 else f"{len(report.damage)} places"
        yield f"DAMAGED in {places}; a server does not start on it:"
        yield from output.damage_text(report.damage)
        yield f"Whole up to {output.end_text(report)}"
        yield f"What can be done: holdfast wal repair {quote(report.directory)}   (changes nothing without --fix)"
    else:
        what = "every checksum fits" + (", every record can be applied" if applied else "; records were not applied")
        closed = ", closed cleanly" if report.is_closed else ""
        verdict = "NOT FINISHED, but whole" if report.is_unfinished else "OK"
        yield f"{verdict}: {what}; last {output.end_text(report)}{closed}"
    if report.is_unfinished:
        yield f"A server does not start on it: {unfinished_import(report.directory)}"


# Dump


@wal_commands.command("dump", cls=Command)
@_directory_argument
@click.option("--from-lsn", type=click.IntRange(min=1), metavar="N", help="First record to print.")
@click.option("--to-lsn", type=click.IntRange(min=1), metavar="N", help="Last record to print.")
@click.option("--key", metavar="KEY", help="Only records about this key or queue.")
@click.option("--file", "file", metavar="NAME", help="One segment, snapshot or kept copy instead of the log.")
@click.option("--frames", is_flag=True, help="One line for each commit instead of one for each record.")
@json_option
def dump_command(
    directory: str,
    from_lsn: int | None,
    to_lsn: int | None,
    key: str | None,
    file: str | None,
    frames: bool,
    as_json: bool,
) -> None:
    """Print the records of a log, one on a line.

    First those of the snapshot, numbered #1, #2...: they are a state, and have no LSN. Goes on behind damage as far as
    commits can still be found, and says what it skipped. Long values are shortened; --json shows them whole. Changes
    nothing; a server may be running.

    Exit codes: 0, 1 it cannot be read, 3 something was skipped that is damaged.
    """
    wanted = _Wanted(from_lsn, to_lsn, None if key is None else os.fsencode(key))
    damaged = False
    with reporting(as_json), contextlib.suppress(ReaderLeft):
        if file is not None and os.sep in file:
            raise ToolError(f"{file} is no name of a file in the data directory")
        with open_beside(directory) as opened:
            for entry in dump(opened, file):
                damaged = damaged or entry.is_damage
                records = wanted.of(entry)
                if records or not isinstance(entry.item, Frame):
                    for line in output.entry_lines(entry, records, frames=frames, as_json=as_json):
                        with to_stdout():
                            sys.stdout.write(line + "\n")
        with to_stdout():
            sys.stdout.flush()
    sys.exit(ExitCode.DAMAGE if damaged else ExitCode.OK)


class _Wanted:
    """Which records to print."""

    def __init__(self, from_lsn: int | None, to_lsn: int | None, key: bytes | None) -> None:
        self._from_lsn = from_lsn
        self._to_lsn = to_lsn
        self._key = key

    def of(self, entry: Entry) -> list[tuple[int, Record]]:
        """Those of an entry, with their numbers."""
        frame = entry.item
        if not isinstance(frame, Frame) or (entry.is_snapshot and (self._from_lsn or self._to_lsn)):
            return []
        if frame.last_lsn < (self._from_lsn or 0) or (self._to_lsn or frame.first_lsn) < frame.first_lsn:
            return []
        return [
            (lsn, record)
            for lsn, record in enumerate(frame.records, frame.first_lsn)
            if (self._from_lsn or lsn) <= lsn <= (self._to_lsn or lsn)
            and (self._key is None or output.has_key(record, self._key))
        ]


# Repair


@wal_commands.command("repair", cls=Command)
@_directory_argument
@click.option("--fix", is_flag=True, help="Do it; without this nothing is changed.")
@click.option(
    "--accept-data-loss", is_flag=True, help="Also when records go that can still be read, or nobody knows which."
)
@json_option
def repair_command(directory: str, fix: bool, accept_data_loss: bool, as_json: bool) -> None:
    """Say how a damaged log can be repaired, and with --fix do it.

    What comes out is the log as it once was: everything from the first damage on goes, because records behind a hole
    would lead to a state that never was. Headers and manifest are written anew where they follow from the rest, and
    then nothing goes. Every file that is changed is kept, as NAME.damaged-TIME. Stop the server first.

    Exit codes: 0 nothing is damaged any more, 1 it cannot be read or written, 3 it is still damaged, 4 a server runs.
    """
    with reporting(as_json), _open_for_repair(directory, fix) as opened, _replaying() as replaying:
        with show_progress("reading") as progress:
            plan = plan_repair(opened, replaying, progress)
        kept: list[str] = []
        fixed = False
        is_agreed = not plan.reasons or accept_data_loss
        if fix and is_agreed and plan.damage:
            kept = repair(opened, plan, time.time_ns() // 1_000_000)
            fixed = True
            with show_progress("verifying") as progress:
                left = verify(opened, replaying, progress).damage
            if left:
                raise left[0]
    is_fine = not plan.damage or fixed
    if as_json:
        print_json(output.plan_json(plan) | {"fixed": fixed, "kept": kept})
    else:
        print_lines(_repair_text(plan, kept, fixed=fixed, refused=fix and not is_agreed))
    sys.exit(ExitCode.OK if is_fine else ExitCode.DAMAGE)


@contextmanager
def _open_for_repair(path: str, fix: bool) -> Iterator[DiskDirectory]:
    if not fix:
        with open_beside(path) as directory:
            yield directory
        return
    directory = DiskDirectory(Path(path))
    try:
        yield directory
    finally:
        directory.close()


def _repair_text(plan: Plan, kept: list[str], *, fixed: bool, refused: bool) -> Iterator[str]:
    where, torn = plan.after.directory, plan.after.torn
    tail = None if torn is None else f"The next start cuts a torn tail of {torn.size_bytes:,} bytes off {torn.file}"
    if not plan.damage:
        yield f"{where}: nothing to repair, last {output.end_text(plan.after)}"
        if tail is not None:
            yield f"{tail}, and keeps a copy"
        if plan.after.is_unfinished:
            yield f"A server does not start on it: {unfinished_import(where)}"
        return
    yield f"{where} is damaged:"
    yield from output.damage_text(plan.damage)
    yield "Repaired:" if fixed else "To repair it:"
    yield from output.steps_text(plan)
    yield from output.loss_text(plan)
    if plan.lost and plan.loss.records and not fixed:
        yield f"What is lost is printed by: holdfast wal dump {quote(where)} --from-lsn {plan.lost[0]}"
    yield from plan.caveats
    if tail is not None:
        yield tail
    if fixed:
        if kept:
            yield f"The files as they were: {', '.join(kept)}"
        is_unfinished = plan.after.is_unfinished
        yield f"Verified: {unfinished_import(where) if is_unfinished else 'a server starts on it'}"
        return
    for reason in plan.reasons:
        yield f"This must be agreed to: {reason}"
    flags = "--fix" + (" --accept-data-loss" if plan.reasons else "")
    done = "Refused, nothing" if refused else "Nothing"
    yield f"{done} was changed. To do it, with the server stopped: holdfast wal repair {quote(where)} {flags}"


# Backup


@click.command("backup", cls=Command)
@_directory_argument
@click.argument("destination", metavar="DEST", type=path_of_directory)
@click.option("--no-verify", is_flag=True, help="Do not replay the copy, which takes the memory that the data take.")
@json_option
def backup_command(directory: str, destination: Path, no_verify: bool, as_json: bool) -> None:
    """Copy a data directory, also of a running server, to DEST, which must be empty or not exist.

    All that was acknowledged when the command began is in the copy, and `holdfast serve --data DEST` starts on it. On
    the same file system only the open segment is copied, the other files get a second name; so a backup against a
    broken disk has to go to another disk.

    Exit codes: 0 done, 1 it cannot be done, 3 the log is damaged; DEST is left empty then.
    """
    with (
        reporting(as_json),
        open_beside(directory) as source,
        _open_target(destination, source) as target,
        _replaying() as replaying,
        show_progress("copying") as copying,
        show_progress("verifying") as verifying,
    ):
        done = backup(source, target, None if no_verify else replaying, copying, verifying)
        source_path, target_path = source.path, target.path
    if as_json:
        print_json(output.backup_json(done, source_path, target_path))
    else:
        print_lines(_backup_text(done, source_path, target_path))


@contextmanager
def _open_target(path: Path, source: DiskDirectory) -> Iterator[DiskDirectory]:
    refuse_inside(path, Path(source.path))
    if path.exists() and any(entry.name not in _IN_EMPTY_ONES for entry in path.iterdir()):
        raise NotEmpty(f"{path} is not empty")
    directory = DiskDirectory(path, owner=source.owner)
    try:
        yield directory
    finally:
        directory.close()


def _backup_text(done: Backup, source: str, target: str) -> Iterator[str]:
    yield f"{source} is backed up in {target}: {done.size_bytes:,} bytes, last record {done.last_lsn:,}"
    if done.linked_bytes:
        shared = "are hard links: one copy with two names"
        yield f"{done.linked_bytes:,} of them {shared}, until {target} is copied to another disk"
    if done.report is not None:
        yield f"Verified: {sum(file.records for file in done.report.files):,} records can be replayed"
    yield f"To serve it: holdfast serve --data {quote(target)}"
