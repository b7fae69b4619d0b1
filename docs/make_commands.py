"""Writes docs/commands.md from the command table: `python -m docs.make_commands`. A test fails when it is stale."""

from __future__ import annotations

import json
from pathlib import Path

from engine.commands.grammar import TABLE, Kind, Parameter, Spec
from engine.limits import KIB, MIB, Limits
from engine.replies import Error

TARGET = Path(__file__).with_name("commands.md")

_HEADER = """\
# Commands

Made from the table in `engine/commands/grammar.py` by `python -m docs.make_commands`; do not edit it by hand.

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
| `internal error` (500) | a defect of Holdfast; the log has its traceback |
"""

_WHEN = {
    Error.KEY_ALREADY_EXISTS: "`NX`, and the key exists",
    Error.QUEUE_IS_EMPTY: "the queue exists and holds nothing",
    Error.WRONG_TYPE: "the key holds the other kind: a queue where a plain value is needed, or the reverse",
    Error.STORAGE_FULL: "the write would grow memory beyond `--max-memory`",
    Error.UNAVAILABLE: "too many clients are waiting already, or the server is shutting down",
}
_NOT_FOUND = {"SET": "`XX`, and the key does not exist", "DELETE": "none of the keys exists"}


def render() -> str:
    """Returns the whole document."""
    rows = "".join(f"| [{spec.name}](#{spec.name.lower()}) | {spec.summary} |\n" for spec in TABLE)
    return _HEADER + rows + "\n" + _limits() + "\n" + "\n".join(map(_section, TABLE)) + "\n" + _FOOTER


def _limits() -> str:
    limits = Limits()
    return (
        f"Limits, each an option of `holdfast serve`: keys of {limits.key_bytes_max // KIB} KiB, values of"
        f" {limits.value_bytes_max // MIB} MiB, {limits.tokens_max:,} words a command, {limits.waiters_max:,} clients"
        " waiting at once.\n"
    )


def _section(spec: Spec) -> str:
    parts = [f"## {spec.name}\n", f"`{spec.usage}`\n", spec.summary + "\n"]
    if spec.aliases:
        parts.append("Also written " + ", ".join(f"`{alias}`" for alias in spec.aliases) + ".\n")
    if spec.options:
        parts.append("| option | meaning |\n|---|---|")
        parts += [f"| `{' '.join(filter(None, (o.name, o.argument)))}` | {o.help} |" for o in spec.options]
        parts.append("")
    parts.append(f"- Line: `{_line_example(spec)}` answers {spec.line_answer}.")
    parts.append(f"- Fields: `{_fields_example(spec)}` answers `success`, {spec.fields_answer}.")
    parts += [f"- `{error.value}`: {_when(spec, error)}." for error in spec.errors]
    return "\n".join(parts) + "\n"


def _when(spec: Spec, error: Error) -> str:
    if error is Error.KEY_NOT_FOUND:
        return _NOT_FOUND.get(spec.name, "there is no such key")
    return _WHEN[error]


def _sample(parameter: Parameter) -> list[str]:
    names = {Kind.KEY: ["color", "shape"], Kind.VALUE: ["red", "green"]}[parameter.kind]
    return names if parameter.many else names[:1]


def _line_example(spec: Spec) -> str:
    words = [spec.name, *(word for parameter in spec.parameters for word in _sample(parameter))]
    return json.dumps({"command": " ".join(words)})


def _fields_example(spec: Spec) -> str:
    members: dict[str, object] = {"command": spec.name}
    for parameter in spec.parameters:
        words = _sample(parameter)
        members[parameter.kind.value] = words if parameter.many else words[0]
    if not spec.parameters:
        members["options"] = {}
    return json.dumps(members)


if __name__ == "__main__":
    TARGET.write_text(render())
