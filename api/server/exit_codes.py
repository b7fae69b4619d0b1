"""How `holdfast` ends."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """The exit codes of the server and of the tools; 2 is that of bad options, 130 that of a tool after Ctrl-C."""

    OK = 0
    FAILURE = 1
    DAMAGE = 3
    LOCKED = 4
    LOG_FAILED = 5
    INTERRUPTED = 130
