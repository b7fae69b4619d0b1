"""How every tool ends: results go to stdout, progress and errors to stderr; with `--json` stdout is nothing but JSON.

Exit codes are those of `serve`: 0 fine, 1 cannot, 2 bad usage, 3 the log is damaged, 4 a server holds the directory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from api.server.exit_codes import ExitCode
from api.server.progress import Progress, Unit, megabytes
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
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has seen enough; nor is Python to complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.OK)
    except (MoveError, NoLog, NotEmpty, NotFinished, Restless, DirectoryError, ToolError, OSError) as error:
        fail(ExitCode.FAILURE, str(error), as_json)


def fail(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    """Ends the command with a message."""
    if as_json:
        print_json({"error": message})
    else:
        click.echo(message, err=True)
    sys.exit(code)


def print_json(members: dict[str, Any]) -> None:
    """Prints one JSON object."""
    click.echo(json.dumps(members))


def print_lines(lines: Iterator[str]) -> None:
    """Prints a text."""
    for line in lines:
        click.echo(line)


def show_progress(label: str, unit: Unit = megabytes) -> Progress:
    """Shows how far something long is, on stderr."""
    return Progress(label, lambda line: click.echo(line, err=True), unit)


@contextmanager
def open_beside(path: str) -> Iterator[DiskDirectory]:
    """Opens a directory without its lock."""
    directory = DiskDirectory(Path(path), beside=True)
    try:
        yield directory
    finally:
        directory.close()
