"""Writes docs/commands.md from the command table, and the lists of names that other pages show.

`python -m docs.make_commands`; a test fails when something is stale.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from engine.commands.grammar import Kind, Parameter, Row
from engine.commands.table import TABLE
from engine.limits import KIB, MIB, Limits

TARGET = Path(__file__).with_name("commands.md")
PAGES = (Path(__file__).parents[1] / "README.md", Path(__file__).with_name("http.md"))
"""Pages that show the names of all commands."""

_HEADER = """\
# Commands

Made from the table in `engine/commands/` by `python -m docs.make_commands`; do not edit it by hand.

Command and option names may be written in any case. Keys and values are byte strings: any JSON string comes back
exactly as it was sent, and numbers are kept as the text they were sent as (`1.0` stays `1.0`). How the two dialects
are written and answered is in [http.md](http.md), and so is how to send [many commands at once](http.md#batches).

| command | does |
|---|---|
"""

_FOOTER = """\
## Errors any command may get

| error | when |
|---|---|
| `invalid command` (400) | unknown command, wrong arguments, bad option; `detail` says which and what was expected |
| `too large` (413) | a key, a value or the number of words is over its limit |
| `unavailable` (503) | shutting down, or too much is waiting: try again after a second |
| `storage full` (507) | the disk is full, with the reserve used up that is kept for what stores nothing |
| `internal error` (500) | a defect of Holdfast; the log has its traceback |
"""


def render() -> str:
    """Returns the whole document."""
    rows = "".join(f"| [{row.name}](#{row.name.lower()}) | {row.summary} |\n" for row in TABLE)
    return _HEADER + rows + "\n" + _limits() + "\n" + "\n".join(map(_section, TABLE)) + "\n" + _FOOTER


def refreshed(page: str) -> str:
    """Returns a page with the lists of names in it as the table has them."""
    names = [row.name for row in TABLE]
    page = re.sub(r"(?<=expected one of )[A-Z]+(, [A-Z]+)*", ", ".join(names), page)
    return re.sub(r"(?<=All commands: `)[A-Z ]+(?=`)", " ".join(names), page)


def _limits() -> str:
    limits = Limits()
    return (
        f"Limits, each an option of `holdfast serve`: keys of {limits.key_bytes_max // KIB} KiB, values of"
        f" {limits.value_bytes_max // MIB} MiB, {limits.tokens_max:,} words a command, {limits.waiters_max:,} clients"
        " waiting at once.\n"
    )


def _section(row: Row) -> str:
    parts = [f"## {row.name}\n", f"`{row.usage}`\n", row.summary + "\n"]
    if row.aliases:
        parts.append("Also written " + ", ".join(f"`{alias}`" for alias in row.aliases) + ".\n")
    if row.options:
        parts.append("| option | meaning |\n|---|---|")
        parts += [f"| `{' '.join(filter(None, (o.name, o.argument)))}` | {o.help} |" for o in row.options]
        parts.append("")
    parts.append(f"- Line: `{_line_example(row)}` answers {row.line_answer}.")
    parts.append(f"- Fields: `{_fields_example(row)}` answers `success`, {row.fields_answer}.")
    parts += [f"- `{error.value}`: {when}." for error, when in row.errors.items()]
    return "\n".join(parts) + "\n"


def _sample(parameter: Parameter) -> list[str]:
    names = {Kind.KEY: ["color", "shape"], Kind.VALUE: ["red", "green"]}[parameter.kind]
    return names if parameter.many else names[:1]


def _line_example(row: Row) -> str:
    words = [row.name, *(word for parameter in row.parameters for word in _sample(parameter))]
    return json.dumps({"command": " ".join(words)})


def _fields_example(row: Row) -> str:
    members: dict[str, object] = {"command": row.name}
    for parameter in row.parameters:
        words = _sample(parameter)
        members[parameter.kind.value] = words if parameter.many else words[0]
    if not row.parameters:
        members["options"] = {}
    return json.dumps(members)


if __name__ == "__main__":
    TARGET.write_text(render())
    for path in PAGES:
        path.write_text(refreshed(path.read_text()))
