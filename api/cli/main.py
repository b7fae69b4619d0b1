"""The command line: `holdfast` and its commands, and how all of them end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import click

from api.cli import streams
from api.cli.checkpoint import checkpoint_command
from api.cli.moving import export_command, import_command
from api.cli.reporting import is_interrupt
from api.cli.serve import serve_command
from api.cli.tools import backup_command, wal_commands
from api.server.exit_codes import ExitCode
from api.server.words import explain


class CommandLine(click.Group):
    """Commands that end with our exit codes, whatever becomes of their words, their streams and their patience.

    Click itself ends with 1 where we do not, and with a traceback where stdout is full.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs what the command line says; does not return."""
        streams.prepare()
        code: int | None = ExitCode.OK
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except click.ClickException as error:
            code = error.exit_code
            with _to_stderr():
                error.show()
        except click.Abort:
            code = ExitCode.INTERRUPTED
        finally:
            with _to_stderr():
                sys.stderr.flush()
        sys.exit(code or ExitCode.OK)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Reads the words before the command; `--help` and `--version` print here."""
        with _ending():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        with _ending():
            return super().invoke(ctx)


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """Ends the process with the right code after what commands do not catch themselves."""
    try:
        with streams.to_stdout():  # where click prints help
            yield
    except streams.ReaderLeft:
        sys.exit(ExitCode.OK)
    except (streams.OutputError, OSError) as error:
        streams.say(explain(error))
        sys.exit(ExitCode.FAILURE)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        streams.say("\ninterrupted")
        sys.exit(ExitCode.INTERRUPTED)


@contextlib.contextmanager
def _to_stderr() -> Iterator[None]:
    try:
        yield
    except OSError:
        streams.drop(sys.stderr)


@click.group(cls=CommandLine, context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="holdfast")
def main() -> None:
    """Holdfast: a durable key-value store with queues, spoken to over HTTP with JSON."""


for command in (serve_command, wal_commands, backup_command, checkpoint_command, export_command, import_command):
    main.add_command(command)
