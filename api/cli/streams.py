"""Standard input and outputs, whatever state they are in: closed, full, without a reader, for another alphabet.

The rules that hold here:

- Descriptors 0, 1 and 2 are open before anything else is opened. A file of the log that got number 2 would be written
  to by whoever complains on stderr.
- What was asked for and cannot be written to stdout is a failure, said on stderr. That its reader has left, as `head`
  does, is none: it has seen enough.
- What cannot be written to stderr is lost, and changes no exit code.
- Text that the terminal's encoding does not have is written with escapes.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import click

# As the descriptor is to be, so that using it the right way round says "Bad file descriptor"; stderr swallows all.
_CLOSED = ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))


class ReaderLeft(Exception):
    """Whoever read stdout has left."""


class OutputError(Exception):
    """Stdout takes nothing; the message says why."""


def prepare() -> None:
    """Opens standard streams that are closed, and has all of them take any text."""
    for number, flags in _CLOSED:
        if not _is_open(number):
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number that is free, which is this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # it stays open
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def to_stdout() -> Iterator[None]:
    """Says what is wrong when stdout does not take what is written to it, which is all that the `with` block does.

    Raises:
        ReaderLeft: nobody reads it any more.
        OutputError: it takes nothing, for another reason.
    """
    try:
        yield
    except BrokenPipeError:
        drop(sys.stdout)
        raise ReaderLeft from None
    except OSError as error:
        if error.filename is not None:
            raise  # of a file
        drop(sys.stdout)
        raise OutputError(f"cannot write to stdout: {error.strerror or error}") from None


def say(message: str) -> None:
    """Writes a line to stderr, if that takes it."""
    try:
        click.echo(message, err=True)
    except OSError:
        drop(sys.stderr)


def drop(stream: TextIO) -> None:
    """Has a stream swallow the rest, which Python would try to write when it ends, and complain."""
    with contextlib.suppress(OSError, ValueError):  # of tests, it has no descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
