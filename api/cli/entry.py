"""Where the console script enters; installed as `holdfast_entry`, a name that nobody else has (pyproject.toml).

`api`, `engine` and `wal` are names that a user's project may have as well, and with `PYTHONPATH=.` the packages of that
project come first. This module is found all the same, and ours stand in its directory, or in one that comes later in
the search path (a .pth file in its directory leads there from an editable install).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def main() -> None:
    """Runs the command line of Holdfast, whatever else is called `api`, `engine` or `wal`."""
    if os.getpid() == 1:
        # The system gives the first process of a container no signal that it has not asked for, and the imports take
        # half a second. What is stopped in them has begun nothing.
        signal.signal(signal.SIGTERM, _exit)
    # Ctrl-C ends the half second of imports by the signal, not with their traceback; ignored, it stays ignored.
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    _import_packages()
    from api.cli.main import main as run

    if handler is signal.default_int_handler:
        signal.signal(signal.SIGINT, handler)
    run()


def _exit(number: int, _frame: FrameType | None) -> None:
    os._exit(128 + number)


def _import_packages() -> None:
    """Imports our packages; what they consist of is then found in their own directories."""
    path = sys.path.copy()
    here = str(Path(__file__).parent)
    sys.path[:0] = path[path.index(here) :] if here in path else [here]
    try:
        for name in ("api", "engine", "wal"):
            importlib.import_module(name)
    finally:
        sys.path[:] = path  # nothing else that is installed may come before the standard library


if __name__ == "__main__":
    main()
