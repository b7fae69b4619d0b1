"""The Lua scripts: what takes more than one Redis command is one script on the keys of one slot.

They lie in `lua/`. A command of ours is one function there, in the file of its family; `alone.lua` is the script around
it that does it by itself, `unit.lua` the one that does many of them as a whole. Redis runs all of a script each time,
definitions too, and twenty that are not used take as long as a push; so a script is put together from those it uses. It
is sent to a node once, and named by its digest from then on.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from engine.commands.grammar import Effect, Row
from engine.commands.table import TABLE

_DIRECTORY = Path(__file__).parent / "lua"
_FAMILIES = ("queues",)
"""Those that have a file in Lua; a function there in capital letters is a command."""

_COMMANDS_HERE = b"--COMMANDS"
"""In `alone.lua` and `unit.lua`: here the functions of the families stand."""

_DEFINED = re.compile(rb"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_COMMAND = re.compile(rb"^local function ([A-Z]+)\(", re.MULTILINE)
_WORD = re.compile(rb"\w+")

PLAIN = b"#!lua"
ALLOW_OOM = b"#!lua flags=allow-oom"
NO_WRITES = b"#!lua flags=no-writes"
"""First lines: what stores something is refused when the memory is full, what only removes is not."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script.

    Attributes:
        source: all of it.
        digest: SHA-1 in hexadecimal, by which Redis knows it.
    """

    source: bytes
    digest: bytes


def _read(name: str) -> bytes:
    return (_DIRECTORY / f"{name}.lua").read_bytes().rstrip()


def _put_together(first_line: bytes, text: bytes) -> Script:
    """Makes a script of paragraphs: the last one is what is done, those before it define what it may need."""
    *definitions, main = b"\n\n".join((_read("common"), text)).split(b"\n\n")
    kept, used = [main], set(_WORD.findall(main))
    for paragraph in reversed(definitions):
        defined = {name for names in _DEFINED.findall(paragraph) for name in names.split(b", ")}
        if defined & used:
            kept.append(paragraph)
            used.update(_WORD.findall(paragraph))
    source = b"\n\n".join((first_line, *reversed(kept)))
    return Script(source, hashlib.sha1(source, usedforsecurity=False).hexdigest().encode())


def _with_commands(name: str, definition: bytes) -> bytes:
    commands = (*map(_read, _FAMILIES), definition)
    return _read(name).replace(_COMMANDS_HERE, b"\n\n".join(commands))


def _alone(row: Row) -> Script:
    first_line = PLAIN if row.stores else ALLOW_OOM if row.effect is Effect.CHANGES else NO_WRITES
    return _put_together(first_line, _with_commands("alone", b"local COMMAND = " + row.name.encode()))


def _unit(first_line: bytes) -> Script:
    table = b", ".join(b"%b = %b" % (name, name) for name in (b"REDIS", *_NAMES))
    return _put_together(first_line, _with_commands("unit", b"local COMMANDS = {%b}" % table))


def _whole(name: str) -> Script:
    first_line, _, rest = _read(name).partition(b"\n")
    return _put_together(first_line, rest)


_NAMES = [name for family in _FAMILIES for name in _COMMAND.findall(_read(family))]

ALONE = {row.name: _alone(row) for row in TABLE if row.name.encode() in _NAMES}
"""What does a command that takes a script by itself, by its name."""

UNIT = _unit(PLAIN)
SHRINKING_UNIT = _unit(ALLOW_OOM)
"""The same for units that store nothing, which a full memory does not refuse."""

GIVE_BACK = _whole("give_back")
APPEND = _whole("append")
"""Of those who move something in; fronts do not use it."""

SCRIPTS = {script.digest: script for script in (*ALONE.values(), GIVE_BACK, UNIT, SHRINKING_UNIT)}
"""All that a front uses, by digest."""
