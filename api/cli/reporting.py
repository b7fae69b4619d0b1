"""How every tool ends: results go to stdout, progress and errors to stderr; with `--json` stdout is nothing but JSON.

Exit codes are those of `serve`: 0 fine, 1 cannot, 2 bad usage, 3 the log is damaged, 4 a server holds the directory;
and 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import click

from api.cli.streams import OutputError, ReaderLeft, say, to_stdout
from api.server.exit_codes import ExitCode
from api.server.progress import Progress, Unit, megabytes
from api.server.words import explain
from engine.moving.items import InUse, MoveError
from wal.files import DirectoryError, DiskDirectory, LockedError
from wal.segment import Damage, NewerFormat
from wal.tools.backup import NotEmpty, NotFinished
from wal.tools.repair import CannotRepair
from wal.tools.view import NoLog, Restless

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class ToolError(Exception):
    """It cannot be done; the message says why."""


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Ends the command with a message and the right exit code when something was refused."""
    try:
        yield
    except (Damage, NewerFormat) as error:
        fail(ExitCode.DAMAGE, str(error), as_json)
    except CannotRepair as error:
        fail(ExitCode.DAMAGE, f"{error.damage}. It cannot be repaired: {error}", as_json)
    except (LockedError, InUse) as error:
        fail(ExitCode.LOCKED, str(error), as_json)
    except (MoveError, NoLog, NotEmpty, NotFinished, Restless, DirectoryError, ToolError, OSError) as error:
        fail(ExitCode.FAILURE, explain(error), as_json)
    except OutputError as error:
        fail(ExitCode.FAILURE, str(error), as_json=False)


def is_interrupt(error: BaseException) -> bool:
    """Whether it is, or comes with, Ctrl-C."""
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(KeyboardInterrupt) is not None
    return isinstance(error, KeyboardInterrupt)


def fail(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    """Ends the command with a message."""
    if as_json:
        with suppress(OutputError):
            print_json({"error": message})
    else:
        say(message)
    sys.exit(code)


def print_json(members: dict[str, Any]) -> None:
    """Prints one JSON object; see `print_lines`."""
    print_lines(iter([json.dumps(members)]))


def print_lines(lines: Iterator[str]) -> None:
    """Prints a text, as far as somebody reads it.

    Raises:
        OutputError: stdout takes nothing.
    """
    with suppress(ReaderLeft), to_stdout():
        for line in lines:
            click.echo(line)


def show_progress(label: str, unit: Unit = megabytes) -> Progress:
    """Shows how far something long is, on stderr."""
    return Progress(label, say, unit)


@contextmanager
def open_beside(path: str) -> Iterator[DiskDirectory]:
    """Opens a directory without its lock."""
    directory = DiskDirectory(Path(path), beside=True)
    try:
        yield directory
    finally:
        directory.close()


def refuse_inside(destination: Path, directory: Path) -> None:
    """Refuses to make a copy inside of what is copied: it would go with it, and stand among the files of a server.

    Raises:
        ToolError: the destination is, or is in, the directory.
    """
    inner, outer = (Path(os.path.realpath(path)) for path in (destination, directory))  # which takes loops of links
    if inner == outer or outer in inner.parents:
        raise ToolError(f"{destination} is inside of {directory}: name a place outside of it, best on another disk")
