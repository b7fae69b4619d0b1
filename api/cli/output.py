"""What the tools print: texts for people, and the same as JSON values. Pure.

The rules that hold here:

- Keys and values come from anywhere: in a text nothing of them reaches a terminal but printable characters.
- In JSON a key or value is a string when it is UTF-8, and `{"base64": "..."}` when it is not.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.store import ops
from wal.frame import Frame, Record
from wal.segment import Damage
from wal.tools.backup import Backup
from wal.tools.check import FileReport, Report
from wal.tools.dump import Entry
from wal.tools.repair import Plan

SHOWN_BYTES_MAX = 100
"""Of a key or value in a text; JSON shows all of it."""

OPS: dict[int, tuple[str, tuple[str, ...]]] = {
    ops.PUT: ("PUT", ("key", "value", "deadline")),
    ops.REMOVE: ("REMOVE", ("key",)),
    ops.PUSH: ("PUSH", ("key", "values")),
    ops.POP_FIRST: ("POP_FIRST", ("key",)),
    ops.POP_LAST: ("POP_LAST", ("key",)),
    ops.RETURN_FIRST: ("RETURN_FIRST", ("key", "value")),
    ops.RETURN_LAST: ("RETURN_LAST", ("key", "value")),
    ops.EXPIRE: ("EXPIRE", ("keys",)),
    ops.DEADLINE: ("DEADLINE", ("key", "deadline")),
}
"""Name and fields of each op."""


def timestamp(time_ms: int) -> str:
    """A time in ISO 8601, UTC; one that no calendar knows as it is."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def printable(data: bytes) -> str:
    """A key or value in quotes, for a terminal; base64 when it is not UTF-8."""
    try:
        text, kind = data[:SHOWN_BYTES_MAX].decode("utf-8", "strict" if len(data) <= SHOWN_BYTES_MAX else "ignore"), ""
        if len(data) > SHOWN_BYTES_MAX:
            data.decode()
    except UnicodeDecodeError:
        text, kind = base64.b64encode(data[:SHOWN_BYTES_MAX]).decode(), "base64:"
    shown = "".join(one if one.isprintable() and one not in '"\\' else json.dumps(one)[1:-1] for one in text)
    more = f"... ({len(data):,} bytes)" if len(data) > SHOWN_BYTES_MAX else ""
    return f'{kind}"{shown}"{more}'


def json_bytes(data: bytes) -> Any:
    """A key or value as a JSON value."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


# Records


def fields_of(record: Record) -> tuple[str, dict[str, Any]] | None:
    """Name and fields of a record; None when it is no op."""
    try:
        name, fields = OPS[ops.check(record)[0]]
    except ops.BadOp:
        return None
    return name, dict(zip(fields, record[1:], strict=True))


def has_key(record: Record, key: bytes) -> bool:
    """Whether a record is about a key."""
    found = fields_of(record)
    return found is not None and (found[1].get("key") == key or key in found[1].get("keys", ()))


def record_text(record: Record) -> str:
    """A record on one line."""
    found = fields_of(record)
    if found is None:
        return f"no op: {printable(repr(record).encode('utf-8', 'backslashreplace'))}"
    name, fields = found
    words = [name]
    for field, value in fields.items():
        if field == "deadline":
            words += [] if value is None else [f"until {timestamp(value)}"]
        else:
            words += map(printable, value if isinstance(value, tuple) else (value,))
    return " ".join(words)


def record_json(record: Record) -> dict[str, Any]:
    """A record as a JSON object."""
    found = fields_of(record)
    if found is None:
        return {"op": None, "record": repr(record)}
    members: dict[str, Any] = {"op": found[0]}
    for field, value in found[1].items():
        if field == "deadline":
            members[field] = None if value is None else timestamp(value)
        else:
            members[field] = [json_bytes(one) for one in value] if isinstance(value, tuple) else json_bytes(value)
    return members


def entry_lines(entry: Entry, records: Sequence[tuple[int, Record]], *, frames: bool, as_json: bool) -> Iterator[str]:
    """The lines of a dump for one entry.

    Args:
        entry: a commit or a hole.
        records: of the commit, those that are wanted, with their numbers.
        frames: one line for the commit instead of one for each record.
        as_json: JSON instead of text.
    """
    item = entry.item
    if not isinstance(item, Frame):
        yield _hole_line(entry, as_json)
    elif frames:
        yield _frame_line(entry.file, item, entry.is_snapshot, as_json)
    else:
        number_name = "snapshot_record" if entry.is_snapshot else "lsn"
        place = {"file": entry.file, "offset": item.offset}
        when = {"time": timestamp(item.time_ms), "durable_lsn": item.durable_lsn}
        for number, record in records:
            if as_json:
                yield _json({**place, number_name: number, **when, **record_json(record)})
            else:
                lsn = f"{'#' if entry.is_snapshot else 'lsn '}{number}"
                head = f"{entry.file}:{item.offset}  {lsn}  {when['time']}  durable {item.durable_lsn}"
                yield f"{head}  {record_text(record)}"


def _frame_line(file: str, frame: Frame, is_snapshot: bool, as_json: bool) -> str:
    size_bytes, time = frame.end - frame.offset, timestamp(frame.time_ms)
    if as_json:
        names = ("first_snapshot_record", "last_snapshot_record") if is_snapshot else ("first_lsn", "last_lsn")
        lsns = dict(zip(names, (frame.first_lsn, frame.last_lsn), strict=True))
        members = {"file": file, "offset": frame.offset, "bytes": size_bytes, **lsns, "time": time}
        return _json({**members, "durable_lsn": frame.durable_lsn, "records": len(frame.records)})
    lsns_text = f"{'#' if is_snapshot else 'lsn '}{frame.first_lsn}-{frame.last_lsn}"
    return f"{file}:{frame.offset}  {lsns_text}  {time}  durable {frame.durable_lsn}  {size_bytes} bytes"


def _hole_line(entry: Entry, as_json: bool) -> str:
    hole = entry.item
    assert not isinstance(hole, Frame)
    size_bytes = hole.end - hole.offset
    if as_json:
        members = {"file": entry.file, "offset": hole.offset, "skipped_bytes": size_bytes, "damage": entry.is_damage}
        return _json({**members, "reason": hole.reason})
    what = "damage" if entry.is_damage else "torn tail"
    return f"{entry.file}:{hole.offset}  -- {what}, {size_bytes} bytes skipped: {hole.reason}"


# Reports


def report_json(report: Report) -> dict[str, Any]:
    """What a verification found, as a JSON object."""
    torn = report.torn
    return {
        "directory": report.directory,
        "damaged": bool(report.damage),
        "store_id": report.store_id.hex() or None,
        "files": [_file_json(file) for file in report.files],
        "bytes": sum(file.size_bytes for file in report.files),
        "frames": sum(file.frames for file in report.files),
        "records": sum(file.records for file in report.files),
        "last_lsn": report.last_lsn,
        "last_time": timestamp(report.time_ms) if report.time_ms else None,
        "closed_cleanly": report.is_closed,
        "unfinished_import": report.is_unfinished,
        "torn_tail": None
        if torn is None
        else {"file": torn.file, "offset": torn.offset, "bytes": torn.size_bytes, "reason": torn.reason},
        "damage": [damage_json(damage) for damage in report.damage],
        "leftovers": report.leftovers,
        "kept": report.kept,
        "foreign": report.foreign,
    }


def _file_json(file: FileReport) -> dict[str, Any]:
    return {
        "name": file.name,
        "bytes": file.size_bytes,
        "frames": file.frames,
        "records": file.records,
        "first_lsn": file.first_lsn,
        "last_lsn": file.last_lsn,
    }


def damage_json(damage: Damage) -> dict[str, Any]:
    """Damage as a JSON object."""
    return {"file": damage.file, "offset": damage.offset, "lsn": damage.lsn, "reason": damage.reason}


def report_text(report: Report) -> Iterator[str]:
    """What a verification found, but for the verdict, as lines."""
    yield f"{report.directory}" + (f", store {report.store_id.hex()}" if report.store_id else "")
    if report.files:
        yield ""
        yield from _table(report.files)
        yield ""
    if report.torn is not None:
        torn = report.torn
        yield f"torn tail  {torn.size_bytes:,} bytes at offset {torn.offset} of {torn.file}: {torn.reason};"
        yield "           from a crash in mid-write, or a server is writing just now; a start cuts it off"
    for label, names in (("leftover", report.leftovers), ("kept copy", report.kept), ("unknown", report.foreign)):
        for name in names:
            yield f"{label:<9}  {printable(os.fsencode(name))[1:-1]}"


def _table(files: Sequence[FileReport]) -> Iterator[str]:
    rows = [("file", "bytes", "frames", "records", "LSNs")]
    for file in files:
        lsns = "-" if file.first_lsn is None else f"{file.first_lsn:,} to {file.last_lsn:,}"
        if file.name.endswith(".snapshot"):
            lsns = "(a state)"
        rows.append((file.name, f"{file.size_bytes:,}", f"{file.frames:,}", f"{file.records:,}", lsns))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *numbers, lsns in rows:
        cells = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)]
        yield f"  {name:<{widths[0]}}  {'  '.join(cells)}  {lsns}"


def damage_text(damage: Sequence[Damage]) -> Iterator[str]:
    """Places and kinds of damage, as lines."""
    for one in damage:
        yield f"  {one.file}  offset {one.offset}, record {one.lsn}: {one.reason}"


def end_text(report: Report) -> str:
    """Up to where a log goes."""
    when = f", written {timestamp(report.time_ms)}" if report.time_ms else ""
    return f"record {report.last_lsn:,}{when}"


# Repair and backup


def steps_text(plan: Plan) -> Iterator[str]:
    """What a repair does, as lines."""
    width = max((len(step.file) for step in plan.steps), default=0)
    for step in plan.steps:
        yield f"  {step.file:<{width}}  {step.what}"


def loss_text(plan: Plan) -> Iterator[str]:
    """What a repair would lose, as lines."""
    lost = plan.lost
    if not plan.damage:
        return
    if lost:
        to = f" to {lost[-1]:,}" if len(lost) > 1 else ""
        readable = f"; {plan.loss.records.total():,} can still be read: {_counts(plan)}" if plan.loss.records else ""
        yield f"Lost: LSN {lost[0]:,}{to}, {len(lost):,} record{'s' if to else ''}{readable}"
    else:
        yield "Lost: nothing that is known of"
    yield f"Kept: everything up to {end_text(plan.after)}" if plan.after.last_lsn else "Kept: nothing"


def _counts(plan: Plan) -> str:
    named: Counter[str] = Counter()
    for code, count in plan.loss.records.items():
        named[OPS[code][0] if code in OPS else "no op"] += count
    return ", ".join(f"{count:,} {name}" for name, count in sorted(named.items()))


def plan_json(plan: Plan) -> dict[str, Any]:
    """How a log can be repaired, as a JSON object."""
    lost = plan.lost
    return {
        "directory": plan.after.directory,
        "damage": [damage_json(damage) for damage in plan.damage],
        "steps": [{"file": step.file, "what": step.what} for step in plan.steps],
        "lost": {"first_lsn": lost[0], "last_lsn": lost[-1], "records": len(lost)} if lost else None,
        "readable": plan.loss.records.total(),
        "needs_accept_data_loss": plan.reasons,
        "caveats": plan.caveats,
        "last_lsn": plan.after.last_lsn,
    }


def backup_json(done: Backup, directory: str, target: str) -> dict[str, Any]:
    """What a backup holds, as a JSON object."""
    return {
        "directory": directory,
        "backup": target,
        "bytes": done.size_bytes,
        "linked_bytes": done.linked_bytes,
        "last_lsn": done.last_lsn,
        "verified": done.report is not None,
    }


def _json(members: dict[str, Any]) -> str:
    return json.dumps(members)
