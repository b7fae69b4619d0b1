"""The Lua scripts: what takes more than one Redis command is one script on the keys of one slot.

They lie in `lua/`, one a file; `queue.lua`, which all of them use, is put behind the first line of each. They are sent
to a node once, and named by their digest from then on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "lua"


@dataclass(frozen=True, slots=True)
class Script:
    """A script.

    Attributes:
        source: all of it.
        digest: SHA-1 in hexadecimal, by which Redis knows it.
    """

    source: bytes
    digest: bytes


def _load(name: str, first_line: bytes | None = None) -> Script:
    shebang, _, body = (_DIRECTORY / f"{name}.lua").read_bytes().partition(b"\n")
    shared = (_DIRECTORY / "queue.lua").read_bytes()
    source = b"\n".join((first_line or shebang, shared, body))
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


QPUSH = _load("qpush")
QPOP = _load("qpop")
BQPOP = _load("bqpop")
QLEN = _load("qlen")
GIVE_BACK = _load("give_back")
APPEND = _load("append")
"""Of those who move something in; fronts do not use it."""

UNIT = _load("unit")
SHRINKING_UNIT = _load("unit", b"#!lua flags=allow-oom")
"""The same for units that store nothing, which a full memory does not refuse."""

SCRIPTS = {script.digest: script for script in (QPUSH, QPOP, BQPOP, QLEN, GIVE_BACK, UNIT, SHRINKING_UNIT)}
"""All that a front uses, by digest."""
