"""Faults in a real process: strace makes its system calls fail, wait or kill it, and keeps a trace of them.

with attached(server, "fdatasync:error=EIO:when=1"):  # a running server; `when` counts from here on, for each thread
    ...
Server(data, under=strace(trace, "fsync:error=EIO:when=1"))  # from the start on
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.harness.process import Server

CHANGES = "write,pwrite64,fdatasync,fsync,ftruncate,fallocate,rename,renameat,renameat2,unlink,unlinkat"
"""What changes files."""

READS = "read,pread64,preadv,preadv2"


def strace(trace: Path, *injections: str, only: Sequence[Path] = (), calls: str = CHANGES) -> list[str]:
    """The command that runs another under strace.

    Args:
        trace: file for what is traced.
        injections: as for `strace -e inject=`.
        only: files and directories; calls that touch none of them are neither traced nor tampered with. A file in
            a directory is not touched by touching the directory.
        calls: what is traced, and may be tampered with.

    Returns:
        Words to put in front; the other command stays our direct child, so that signals and exit code are its own.
    """
    return ["strace", "-D", *_options(trace, injections, only, calls)]


@contextmanager
def attached(server: Server, *injections: str, only: Sequence[Path] = (), calls: str = CHANGES) -> Iterator[Path]:
    """Attaches strace to a running server for the length of the block; yields the trace."""
    trace = server.log_file.with_suffix(".strace")
    command = ["strace", *_options(trace, injections, only, calls), "-p", str(server.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " attached" in line, line
        try:
            yield trace
        finally:
            process.terminate()


def _options(trace: Path, injections: Sequence[str], only: Sequence[Path], calls: str) -> list[str]:
    tampering = [word for injection in injections for word in ("-e", f"inject={injection}")]
    paths = [word for path in only for word in ("-P", str(path))]
    return ["-f", "-y", "-s", "16", "-o", str(trace), "-e", f"trace={calls}", *tampering, *paths]
