"""The tools: `holdfast wal verify | dump | repair`, `holdfast backup`, `holdfast checkpoint`.

All but the last read a data directory, also beside a running server, and change nothing in it; `repair --fix` does, and
takes the lock. Results go to stdout, progress and errors to stderr; with `--json` stdout holds JSON and nothing else.

Exit codes are those of `serve`: 0 fine, 1 cannot, 2 bad usage, 3 the log is damaged, 4 a server holds the directory.
"""

from __future__ import annotations

import contextlib
import gc
import http.client
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import click

from api.cli import output
from api.cli.options import bind_option, token_option
from api.cli.reporting import ToolError, json_option, open_beside, print_json, print_lines, reporting, show_progress
from api.server.exit_codes import ExitCode
from engine.embedded.recovery import applying
from engine.store import ops
from engine.store.state import State
from wal.files import DiskDirectory
from wal.frame import Frame, Record
from wal.replay import Apply
from wal.tools.backup import Backup, NotEmpty, backup
from wal.tools.check import Report, verify
from wal.tools.dump import Entry, dump
from wal.tools.repair import Plan, plan_repair, repair

CONNECT_WITHIN_S = 10.0
"""For a connection to the server; a checkpoint itself takes as long as it takes."""

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # where a server listens, not we

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


@wal_commands.command("verify")
@_directory_argument
@click.option("--no-apply", is_flag=True, help="Check the bytes only, which takes little memory.")
@json_option
def verify_command(directory: str, no_apply: bool, as_json: bool) -> None:
    """Read a log and say what it holds and what is wrong with it.

    Checks all that a start checks: every checksum, that nothing is missing or foreign, and that every record can be
    applied; the latter takes the memory that the data take. Changes nothing; a server may be running.

    Exit codes: 0 a server starts on it, 1 it cannot be read, 3 it is damaged.
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
    sys.exit(ExitCode.DAMAGE if report.damage else ExitCode.OK)


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
        yield f"OK: {what}; last {output.end_text(report)}{closed}"


# Dump


@wal_commands.command("dump")
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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # keys may hold what the terminal's encoding does not know
    with reporting(as_json):
        if file is not None and os.sep in file:
            raise ToolError(f"{file} is no name of a file in the data directory")
        with open_beside(directory) as opened:
            for entry in dump(opened, file):
                damaged = damaged or entry.is_damage
                records = wanted.of(entry)
                if records or not isinstance(entry.item, Frame):
                    for line in output.entry_lines(entry, records, frames=frames, as_json=as_json):
                        sys.stdout.write(line + "\n")
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


@wal_commands.command("repair")
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
        yield "Verified: a server starts on it"
        return
    for reason in plan.reasons:
        yield f"This must be agreed to: {reason}"
    flags = "--fix" + (" --accept-data-loss" if plan.reasons else "")
    done = "Refused, nothing" if refused else "Nothing"
    yield f"{done} was changed. To do it, with the server stopped: holdfast wal repair {quote(where)} {flags}"


# Backup


@click.command("backup")
@_directory_argument
@click.argument("destination", metavar="DEST", type=click.Path(file_okay=False))
@click.option("--no-verify", is_flag=True, help="Do not replay the copy, which takes the memory that the data take.")
@json_option
def backup_command(directory: str, destination: str, no_verify: bool, as_json: bool) -> None:
    """Copy a data directory, also of a running server, to DEST, which must be empty or not exist.

    All that was acknowledged when the command began is in the copy, and `holdfast serve --data DEST` starts on it. On
    the same file system only the open segment is copied, the other files get a second name; so a backup against a
    broken disk has to go to another disk.

    Exit codes: 0 done, 1 it cannot be done, 3 the log is damaged; DEST is left empty then.
    """
    with (
        reporting(as_json),
        open_beside(directory) as source,
        _open_target(Path(destination)) as target,
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
def _open_target(path: Path) -> Iterator[DiskDirectory]:
    if path.exists() and any(entry.name != "LOCK" for entry in path.iterdir()):
        raise NotEmpty(f"{path} is not empty")
    directory = DiskDirectory(path)
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


# Checkpoint


@click.command("checkpoint")
@bind_option("Address of the server.")
@token_option("The server's token.")
@json_option
def checkpoint_command(bind: tuple[str, int], token: str | None, as_json: bool) -> None:
    """Have a running server fold its log into a snapshot, and wait until it has.

    Servers do this by themselves; before a planned restart it makes the start quick.

    Exit codes: 0 done, 1 no server answers, or it refused.
    """
    host, port = bind
    if port == 0:
        raise click.BadParameter("the server's port is needed", param_hint="--bind")
    with reporting(as_json):
        done = _ask_for_checkpoint(_ANY_ADDRESS.get(host, host), port, token)
    if as_json:
        print_json(done)
    elif done["segments"] == 0:
        click.echo("nothing to fold: everything is in the snapshot already")
    else:
        segments = "1 segment" if done["segments"] == 1 else f"{done['segments']:,} segments"
        click.echo(
            f"folded {segments}, {done['folded_bytes']:,} bytes, into a snapshot of"
            f" {done['snapshot_bytes']:,} bytes in {done['duration_s']:.1f} s"
        )


def _ask_for_checkpoint(host: str, port: int, token: str | None) -> dict[str, Any]:
    """Returns the server's answer; raises ToolError when that is no success."""
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    headers = {"Content-Length": "0"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_WITHIN_S)
    with contextlib.closing(connection):
        try:
            connection.connect()
            connection.sock.settimeout(None)
            connection.request("POST", "/checkpoint", headers=headers)
            response = connection.getresponse()
            status, body = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise ToolError(f"no answer from {where}: {reason} (--bind says where the server is)") from None
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise ToolError(f"what answers on {where} is no Holdfast (status {status})")
    if status == http.HTTPStatus.OK:
        return answer
    if status == http.HTTPStatus.NOT_FOUND:
        raise ToolError(f"the server at {where} has no log to fold: its keys are on Redis")
    detail = f": {answer['detail']}" if "detail" in answer else ""
    raise ToolError(f"the server at {where} refused: {answer.get('error', status)}{detail}")
