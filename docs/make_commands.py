"""Writes docs/commands.md from the command table, and the lists of names that other pages show.

`python -m docs.make_commands`; a test fails when something is stale. The answers in the examples are those of a server
that is started for them.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path

import httpx

from engine.commands.grammar import NO_ROOM, OTHER_KIND, Row
from engine.commands.table import TABLE
from engine.limits import KIB, MIB, Limits
from engine.replies import Error
from tests.harness.process import Server

TARGET = Path(__file__).with_name("commands.md")
PAGES = (Path(__file__).parents[1] / "README.md", Path(__file__).with_name("http.md"))
"""Pages that show the names of all commands."""

_HEADER = """\
# Commands

Each command can be written in two ways: as one line, or with a member for each part. The examples show both. `SET` and
`QPUSH` answer a line with 200 and an empty body. [http.md](http.md) has the rules, and says how to send
[many commands at once](http.md#batches).

You may write the names of commands and options in any case. A key or value comes back exactly as you sent it. A number
is kept as its text: `1.0` stays `1.0`.

| command | does |
|---|---|
"""

_FOOTER = """\
## Errors

| error | status | when |
|---|---|---|
| `wrong type` | 409 | {wrong_type} |
| `storage full` | 507 | {storage_full}. Commands that store nothing get it only when the reserve is used up too |
| `invalid command` | 400 | the command, its arguments or an option is wrong; `detail` says what was expected |
| `too large` | 413 | a key, a value or the number of words is over its limit |
| `unavailable` | 503 | the server is shutting down or has too much to do: try again after a second |
| `internal error` | 500 | Holdfast has a defect; the log of the server has its traceback |

Any command may get the last four. [http.md](http.md#errors) has those that come before a command is read.

This page is made from the table in `engine/commands/` by `python -m docs.make_commands`. Do not edit it by hand.
"""

_EXPLAINED_ONCE = (*OTHER_KIND, *NO_ROOM)
"""Errors of many commands, which the table at the end of the page explains."""


def render(server: Server) -> str:
    """Returns the whole document.

    Args:
        server: answers the examples; it holds nothing.
    """
    rows = "".join(f"| [{row.name}](#{row.name.lower()}) | {_first_sentence(row.summary)} |\n" for row in TABLE)
    sections = "\n".join(_section(row, server) for row in TABLE)
    footer = _FOOTER.format(wrong_type=OTHER_KIND[Error.WRONG_TYPE], storage_full=NO_ROOM[Error.STORAGE_FULL])
    return f"{_HEADER}{rows}\n{_limits()}\n{sections}\n{footer}"


def refreshed(page: str) -> str:
    """Returns a page with the lists of names in it as the table has them."""
    names = [row.name for row in TABLE]
    page = re.sub(r"(?<=expected one of )[A-Z]+(, [A-Z]+)*", ", ".join(names), page)
    return re.sub(r"(?<=All commands: `)[A-Z ]+(?=`)", " ".join(names), page)


def in_fields(row: Row, line: str) -> str:
    """Writes a command in the fields dialect.

    Args:
        row: of the command.
        line: the command in the line dialect, without quotes in it.

    Returns:
        The body of the request.
    """
    name, *words = line.split()
    members: dict[str, object] = {"command": name}
    for parameter in row.parameters:
        taken, words = (words, []) if parameter.many else (words[:1], words[1:])
        members[parameter.kind.value] = taken if len(taken) > 1 else taken[0]
    if words or not row.parameters:
        members["options"] = _options(row, words)
    return json.dumps(members)


def _options(row: Row, words: list[str]) -> dict[str, object]:
    options: dict[str, object] = {}
    while words:
        word, *words = words
        option = next((option for option in row.options if option.name == word), None)
        if option is None:  # the argument of one that may go without its name
            options[row.options[-1].name.lower()] = json.loads(word)
        elif option.argument is None:
            options[word.lower()] = True
        else:
            options[word.lower()], words = json.loads(words[0]), words[1:]
    return options


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].removesuffix(".") + "."


def _limits() -> str:
    limits = Limits()
    return (
        f"A key has up to {limits.key_bytes_max // KIB} KiB, a value up to {limits.value_bytes_max // MIB} MiB, and a"
        f" command up to {limits.tokens_max:,} words. Up to {limits.waiters_max:,} clients may wait at once. Each limit"
        " is an option of `holdfast serve`.\n"
    )


def _section(row: Row, server: Server) -> str:
    parts = [f"## {row.name}\n", f"`{row.usage}`\n", row.summary + "\n"]
    if row.aliases:
        parts.append("You may also write " + ", ".join(f"`{alias}`" for alias in row.aliases) + ".\n")
    if row.options:
        parts.append("| option | meaning |\n|---|---|")
        parts += [f"| `{' '.join(filter(None, (o.name, o.argument)))}` | {o.help} |" for o in row.options]
        parts.append("")
    parts += ["```console", *_session(row, server), "```\n"]
    refusals = [_refusal(error, when) for error, when in row.errors.items()]
    if refusals:
        parts.append("Errors: " + "; ".join(refusals) + ".\n")
    return "\n".join(parts)


def _refusal(error: Error, when: str) -> str:
    if error in _EXPLAINED_ONCE:
        return f"[`{error.value}`](#errors)"
    return f"`{error.value}` if {when}"


def _session(row: Row, server: Server) -> list[str]:
    bodies = [json.dumps({"command": line}) for line in row.examples]
    bodies += [in_fields(row, line) for line in row.more_examples]
    lines = []
    for body in bodies:
        lines.append(f"$ curl localhost:8080 -d '{body}'")
        lines += filter(None, [httpx.post(server.url, content=body, trust_env=False).text])
    return lines


def main() -> None:
    """Writes the pages."""
    with tempfile.TemporaryDirectory() as scratch, Server(Path(scratch) / "data") as server:
        TARGET.write_text(render(server))
    for path in PAGES:
        path.write_text(refreshed(path.read_text()))


if __name__ == "__main__":
    main()
