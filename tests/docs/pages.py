"""A page of the documentation as its fenced blocks.

The language of a fence says what becomes of a block:

    console            typed into a terminal: `$ ` stands before a command, what follows is what it prints
    sh, bash           run as a script; it must end well
    python, js         run as a program; it must end well
    everything else    shown only: text, ini, json, nginx, ...

A script or program that begins with a comment of a name, like `# worker.py`, is not run where it stands but saved
under that name, for the sessions that come after it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

from tests.harness.process import ROOT

INTERPRETERS = {"sh": "bash -e", "bash": "bash -e", "python": "python", "js": "node"}
"""Languages that are run, and by what."""

PROGRAMS = {".sh": "bash", ".py": sys.executable, ".mjs": "node"}
"""What runs a file, by the ending of its name."""

_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"(?:#!.*\n)?(?:#|//) ([\w-]+\.(?:sh|py|mjs))\b")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: of its fence.
        text: what it holds, with the indentation of the fence taken away.
        line: of the page where it begins.
    """

    language: str
    text: str
    line: int

    @property
    def name(self) -> str | None:
        """The file that it is to be saved as, if it has a name."""
        found = _NAME.match(self.text) if self.language in INTERPRETERS else None
        return found[1] if found else None


@dataclass(frozen=True)
class Step:
    """A command of a session, and what it prints."""

    command: str
    output: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order.

    Args:
        page: its path from the top of the repository.
    """
    content = (ROOT / page).read_text()
    return [
        Block(
            found[2],
            re.sub(f"^{found[1]}", "", found[3], flags=re.MULTILINE),
            content.count("\n", 0, found.start()) + 1,
        )
        for found in _FENCE.finditer(content)
    ]


def steps(block: Block) -> list[Step]:
    """The commands of a session; lines that begin with `> `, or follow a backslash, belong to the one before."""
    found: list[list[str]] = []
    for line in block.text.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif not found:
            raise AssertionError(f"a session begins with `$ `, not with {line!r}")
        elif found[-1][1] == "" and (line.startswith("> ") or found[-1][0].endswith("\\\n")):
            found[-1][0] += line.removeprefix("> ")
        else:
            found[-1][1] += line
    return [Step(command.rstrip("\n"), output) for command, output in found]


def programs(page: str) -> dict[str, str]:
    """The files that a page has its readers save, by name."""
    return {block.name: block.text for block in blocks(page) if block.name}
