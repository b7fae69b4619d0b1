"""The tools as commands: what they print, their exit codes, and that JSON is nothing but JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from api.cli import output as tool_output
from api.cli.main import main
from engine.store import ops
from tests.harness import damage
from tests.harness.damage import HEALTHY, Files
from tests.harness.logs import COMMITS
from tests.harness.process import ROOT, Server
from wal.files import DiskDirectory
from wal.manifest import MANIFEST_NAME

CLOSED, CRASHED, FOLDED = HEALTHY["closed"], HEALTHY["crashed"], HEALTHY["closed with snapshot"]
FIRST, MIDDLE, LAST = damage.segments(CLOSED)
END, BEFORE_LAST = "2023-11-14T22:13:20.007Z", "2023-11-14T22:13:20.006Z"
"""When the last commit was written, and the one before."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    return path


def put(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def content(path: Path) -> Files:
    return {one.name: one.read_bytes() for one in path.iterdir() if one.name != "LOCK"}


def broken(files: Files, name: str, at: int) -> Files:
    return files | {name: files[name][:at] + bytes([files[name][at] ^ 1]) + files[name][at + 1 :]}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> tuple[int, Any]:
    result = run(*arguments, "--json")
    assert result.stderr == ""
    return result.exit_code, json.loads(result.stdout)


# Verify


def test_verify_says_what_a_whole_log_holds(data: Path) -> None:
    result = run("wal", "verify", put(data, CLOSED))
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2:] == [
        "  file          bytes  frames  records  LSNs",
        "  00000001.log    189       3        4  1 to 4",
        "  00000002.log    177       3        4  5 to 8",
        "  00000003.log    147       2        4  9 to 12",
        "",
        f"OK: every checksum fits, every record can be applied; last record 12, written {END}, closed cleanly",
    ]


def test_verify_names_every_damage_and_the_repair_and_exits_3(data: Path) -> None:
    """A2"""
    put(data, broken(broken(CLOSED, MIDDLE, 120), LAST, 140))
    before = content(data)
    result = run("wal", "verify", data)
    assert result.exit_code == 3
    assert "DAMAGED in 2 places; a server does not start on it:" in result.stdout
    assert f"  {MIDDLE}  offset 106, record 6: the frame's checksum does not match" in result.stdout
    assert f"  {LAST}  offset 106, record 11: " in result.stdout
    assert "Whole up to record 5, written" in result.stdout
    assert f"holdfast wal repair {data}" in result.stdout
    assert content(data) == before


def test_verify_as_json_is_one_object(data: Path) -> None:
    code, found = run_json("wal", "verify", put(data, broken(CLOSED, LAST, 140)))
    assert code == 3
    assert found["damaged"] is True
    assert found["damage"][0] | {"reason": ""} == {"file": LAST, "offset": 106, "lsn": 11, "reason": ""}
    assert (found["records"], found["last_lsn"], found["last_time"]) == (10, 10, "2023-11-14T22:13:20.006Z")
    assert found["files"][0] == {
        "name": FIRST,
        "bytes": 189,
        "frames": 3,
        "records": 4,
        "first_lsn": 1,
        "last_lsn": 4,
    }


def test_without_applying_bytes_and_shapes_are_checked_and_nothing_else(data: Path) -> None:
    """A12: a pop from a queue that is not there has a sound shape; an op that nobody knows has not."""
    found = {}
    for name, files in damage.records(CRASHED):
        if name.endswith("at the end"):
            found[name] = run("wal", "verify", put(data, files), "--no-apply").exit_code
            assert run("wal", "verify", data).exit_code == 3
    assert found == {
        "(99, b'a') at the end": 3,
        "(4, b'unknown') at the end": 0,
        "(1, b'a') at the end": 3,
        "({},) at the end": 3,
        "() at the end": 3,
    }


def test_verify_tells_of_torn_tails_copies_leftovers_and_unknown_files(data: Path) -> None:
    put(data, CRASHED | {LAST: CRASHED[LAST][:-1], f"{FIRST}.torn-1": b"", "00000004.log.tmp": b"", "a\x1b[2J": b""})
    out = run("wal", "verify", data).stdout
    assert f"torn tail  39 bytes at offset 106 of {LAST}: the frame's end is cut off;" in out
    assert f"kept copy  {FIRST}.torn-1" in out
    assert "leftover   00000004.log.tmp" in out
    assert "unknown    a\\u001b[2J" in out


# Dump


def test_dump_prints_a_record_a_line(data: Path) -> None:
    result = run("wal", "dump", put(data, CLOSED))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == '00000001.log:68  lsn 1  2023-11-14T22:13:20.000Z  durable 0  PUT "a" "1"'
    assert [line.split("  ")[-1] for line in lines[1:]] == [
        'PUT "b" "2" until 2023-11-14T22:14:20.000Z',
        'PUSH "q" "x" "y" "z"',
        'POP_FIRST "q"',
        'PUT "a" "three"',
        'POP_LAST "q"',
        'RETURN_LAST "q" "z"',
        'RETURN_FIRST "q" "x"',
        'REMOVE "a"',
        'PUSH "r" ""',
        'EXPIRE "b"',
        'PUT "c" base64:"/wA="',
    ]


def dumped(*arguments: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("wal", "dump", *arguments, "--json").stdout.splitlines()]


def test_dump_as_json_is_an_object_a_line(data: Path) -> None:
    lines = dumped(put(data, FOLDED))
    assert lines[0] == {
        "file": "00000002.snapshot",
        "offset": 68,
        "snapshot_record": 1,
        "time": "2023-11-14T22:13:20.003Z",
        "durable_lsn": 0,
        "op": "PUT",
        "key": "a",
        "value": "three",
        "deadline": None,
    }
    assert lines[-1]["value"] == {"base64": "/wA="}
    assert [line["lsn"] for line in lines if "lsn" in line] == list(range(6, 13))


def test_dump_takes_a_range_a_key_and_a_file(data: Path) -> None:
    put(data, CLOSED)
    assert [line["lsn"] for line in dumped(data, "--from-lsn", 3, "--to-lsn", 5)] == [3, 4, 5]
    assert [line["op"] for line in dumped(data, "--key", "b")] == ["PUT", "EXPIRE"]
    assert {line["file"] for line in dumped(data, "--file", MIDDLE)} == {MIDDLE}
    assert [(line["first_lsn"], line["records"], line["bytes"]) for line in dumped(data, "--frames")][:2] == [
        (1, 1, 34),
        (2, 2, 57),
    ]
    put(data, {f"{MIDDLE}.damaged-1": CLOSED[MIDDLE]})
    assert len(dumped(data, "--file", f"{MIDDLE}.damaged-1")) == 4


def test_a_range_of_lsns_leaves_a_snapshot_out(data: Path) -> None:
    put(data, FOLDED)
    assert [line.get("lsn") for line in dumped(data, "--from-lsn", 1, "--to-lsn", 7)] == [6, 7]


def test_dump_goes_on_behind_damage_and_says_what_it_skipped(data: Path) -> None:
    """A12"""
    put(data, broken(broken(CLOSED, FIRST, 3), MIDDLE, 120))
    result = run("wal", "dump", data)
    assert result.exit_code == 3
    lines = result.stdout.splitlines()
    assert f"{FIRST}:0  -- damage, 68 bytes skipped: this is no such file of Holdfast's" in lines
    assert (
        f"{MIDDLE}:106  -- damage, 30 bytes skipped: the frame's checksum does not match; the frame at offset 136"
        in ("\n".join(lines))
    )
    assert re.findall(r"lsn (\d+)", result.stdout) == [str(lsn) for lsn in range(1, 13) if lsn != 6]


def test_dump_reads_what_is_left_when_the_manifest_is_gone(data: Path) -> None:
    put(data, {name: files for name, files in CLOSED.items() if name not in (MANIFEST_NAME, MIDDLE)})
    assert [line["lsn"] for line in dumped(data) if "lsn" in line] == [1, 2, 3, 4, 9, 10, 11, 12]


def test_a_torn_tail_is_skipped_and_is_no_damage(data: Path) -> None:
    put(data, CRASHED | {LAST: CRASHED[LAST][:-1] + bytes(500)})
    result = run("wal", "dump", data)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].startswith(f"{LAST}:106  -- torn tail, 39 bytes skipped: ")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'say "hi"\n\\', r'"say \"hi\"\n\\"'),
        ("grün \u202e\x9b".encode(), r'"grün \u202e\u009b"'),
        (b"\xff\x00", 'base64:"/wA="'),
        (b"x" * 101, '"' + "x" * 100 + '"... (101 bytes)'),
        ("ü".encode() * 51, '"' + "ü" * 50 + '"... (102 bytes)'),
        (b"x" + "ü".encode() * 51, '"x' + "ü" * 49 + '"... (103 bytes)'),
        (b"x" * 100 + b"\xff", "base64:"),
    ],
)
def test_what_reaches_a_terminal_is_printable(value: bytes, shown: str) -> None:
    """F12"""
    text = tool_output.printable(value)
    assert text.startswith(shown)
    assert text.isprintable()


def test_every_op_has_a_name_and_a_name_for_each_field() -> None:
    codes = {code for name, code in vars(ops).items() if name.isupper() and type(code) is int}
    every = [*(op for commit in COMMITS for op in commit), (ops.DEADLINE, b"a", 7), (ops.DEADLINE, b"a", None)]
    assert set(tool_output.OPS) == codes == {op[0] for op in every}
    for op in every:
        found = tool_output.fields_of(op)
        assert found is not None
        assert found[1]["deadline" if op[0] == ops.PUT else list(found[1])[-1]] == op[-1]


def test_a_record_that_is_no_op_is_printed_all_the_same() -> None:
    assert tool_output.record_text((99, b"\x1b")) == """no op: "(99, b'\\\\x1b')\""""
    assert tool_output.record_json((1, "a")) == {"op": None, "record": "(1, 'a')"}
    assert tool_output.timestamp(1 << 62) == f"{1 << 62} ms"


# Repair


def test_repair_says_what_it_would_do_and_does_it_when_told(data: Path) -> None:
    """A17"""
    put(data, broken(CLOSED, LAST, 140))
    before = content(data)
    result = run("wal", "repair", data)
    assert result.exit_code == 3
    assert result.stdout.splitlines()[2:] == [
        "To repair it:",
        f"  {LAST}  is cut at offset 106, of 147 bytes",
        f"  MANIFEST      is written anew and names {FIRST} to {LAST}",
        "Lost: LSN 11 to 12, 2 records",
        "Kept: everything up to record 10, written 2023-11-14T22:13:20.006Z",
        "This must be agreed to: the log was closed cleanly, so every record was on disk, the last ones too",
        f"Nothing was changed. To do it, with the server stopped: holdfast wal repair {data} --fix --accept-data-loss",
    ]
    assert run("wal", "repair", data, "--fix").exit_code == 3
    assert content(data) == before
    result = run("wal", "repair", data, "--fix", "--accept-data-loss")
    assert result.exit_code == 0
    assert "Verified: a server starts on it" in result.stdout
    after = content(data)
    assert {after[name] for name in after if ".damaged-" in name} == {before[LAST], before[MANIFEST_NAME]}
    said = f"{data}: nothing to repair, last record 10, written {BEFORE_LAST}\n"
    assert run("wal", "repair", data).stdout == said
    assert run("wal", "verify", data).exit_code == 0


def test_what_would_lose_records_before_others_has_to_be_agreed_to(data: Path) -> None:
    """A17"""
    put(data, broken(CLOSED, MIDDLE, 120))
    before = content(data)
    result = run("wal", "repair", data, "--fix")
    assert result.exit_code == 3
    assert "Lost: LSN 6 to 12, 7 records; 6 can still be read: " in result.stdout
    assert f"This must be agreed to: {MIDDLE} to {LAST} hold records that can still be read" in result.stdout
    assert "Refused, nothing was changed." in result.stdout
    assert content(data) == before
    code, done = run_json("wal", "repair", data, "--fix", "--accept-data-loss")
    assert code == 0
    assert (done["fixed"], done["last_lsn"], done["lost"]) == (True, 5, {"first_lsn": 6, "last_lsn": 12, "records": 7})
    assert run("wal", "verify", data).exit_code == 0


def test_a_repair_that_has_nothing_to_keep_is_a_repair_all_the_same(data: Path) -> None:
    """A17: the manifest follows from the headers of the segments."""
    put(data, CLOSED)
    (data / MANIFEST_NAME).unlink()
    result = run("wal", "repair", data, "--fix")
    assert (result.exit_code, "Repaired:" in result.stdout, "Nothing was changed" in result.stdout) == (0, True, False)
    (data / MANIFEST_NAME).unlink()
    code, done = run_json("wal", "repair", data, "--fix")
    assert (code, done["fixed"], done["kept"]) == (0, True, [])


def test_what_cannot_be_repaired_exits_3_and_says_so(data: Path) -> None:
    put(data, {name: files for name, files in CLOSED.items() if name != FIRST})
    result = run("wal", "repair", data, "--fix", "--accept-data-loss")
    assert result.exit_code == 3
    assert "It cannot be repaired: it is the first of the log" in result.stderr
    code, found = run_json("wal", "repair", data)
    assert code == 3
    assert "restore a backup" in found["error"]


def test_repair_takes_the_lock_only_to_change_something(data: Path) -> None:
    put(data, broken(CLOSED, LAST, 140))
    holder = DiskDirectory(data)
    assert run("wal", "repair", data).exit_code == 3
    result = run("wal", "repair", data, "--fix")
    holder.close()
    assert result.exit_code == 4
    assert "is in use by process" in result.stderr


# Everywhere


@pytest.mark.parametrize("arguments", [["wal", "verify"], ["wal", "dump"], ["wal", "repair"], ["backup"]])
def test_an_empty_directory_exits_1_and_a_missing_one_2(arguments: list[str], data: Path) -> None:
    more = [data.parent / "copy"] if arguments == ["backup"] else []
    result = run(*arguments, data, *more)
    assert (result.exit_code, result.stderr) == (1, f"there is no log in {data}\n")
    assert run(*arguments, data / "nowhere", *more).exit_code == 2


def test_a_file_that_cannot_be_read_exits_1_without_a_traceback(data: Path) -> None:
    """A15"""
    put(data, CLOSED)
    (data / MIDDLE).unlink()
    (data / MIDDLE).mkdir()
    put(data.parent, {"x": CLOSED[FIRST]})
    for command in (["wal", "dump", data, "--file", MIDDLE], ["wal", "dump", data, "--file", "../x"]):
        result = run(*command)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1


def test_a_fresh_disk_is_an_empty_place(data: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "lost+found").mkdir(parents=True)
    assert run("backup", put(data, CLOSED), tmp_path / "disk").exit_code == 0
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    result = run("backup", data, tmp_path / "loop")
    assert (result.exit_code, result.stderr.startswith(f"{tmp_path}/loop: ")) == (1, True)


@pytest.mark.parametrize("inside", ["", "backup", "deep/below", "../data/backup", "../link/backup"])
def test_no_copy_is_made_inside_of_what_is_copied(data: Path, inside: str) -> None:
    put(data, CLOSED)
    (data.parent / "link").symlink_to(data)
    before = {path.name for path in data.iterdir()}
    for words in (["backup", data, data / inside], ["export", data, "--to", data / inside]):
        result = run(*words)
        assert (result.exit_code, "name a place outside of it" in result.stderr) == (1, True)
    assert {path.name for path in data.iterdir()} - {"LOCK"} == before


def test_what_root_makes_of_somebodys_data_belongs_to_that_somebody(data: Path, tmp_path: Path) -> None:
    """And root may read it all."""
    put(data, broken(CLOSED, LAST, 140))
    for path in (data, *data.iterdir()):
        os.chown(path, 1000, 2000)
    assert run("wal", "repair", data, "--fix", "--accept-data-loss").exit_code == 0
    for words in (
        *(["wal", "verify", data], ["wal", "dump", data], ["backup", data, tmp_path / "backup"]),
        ["export", data, "--to", tmp_path / "moved"],
    ):
        assert run(*words).exit_code == 0
    made = [
        path for place in ("data", "backup", "moved") for path in ((tmp_path / place), *(tmp_path / place).iterdir())
    ]
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(1000, 2000)}


def test_backup_says_what_it_holds_and_refuses_a_place_that_is_not_empty(data: Path, tmp_path: Path) -> None:
    put(data, CLOSED)
    target = tmp_path / "copy"
    result = run("backup", data, target)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        f"{data} is backed up in {target}: 513 bytes, last record 12",
        f"366 of them are hard links: one copy with two names, until {target} is copied to another disk",
        "Verified: 12 records can be replayed",
        f"To serve it: holdfast serve --data {target}",
    ]
    result = run("backup", data, target)
    assert (result.exit_code, result.stderr) == (1, f"{target} is not empty\n")
    code, done = run_json("backup", data, tmp_path / "other", "--no-verify")
    assert (code, done["verified"], done["last_lsn"]) == (0, False, 12)


def test_a_damaged_log_is_no_backup(data: Path, tmp_path: Path) -> None:
    put(data, broken(CLOSED, FIRST, 120))
    result = run("backup", data, tmp_path / "copy")
    assert result.exit_code == 3
    assert f"{data}/{FIRST} is damaged at offset 102, record 2" in result.stderr
    assert content(tmp_path / "copy") == {}


# Checkpoint


class Answering(BaseHTTPRequestHandler):
    """A server that answers every request with one status and body."""

    status, body = 200, b""
    seen: list[tuple[str, str, str | None]] = []  # noqa: RUF012  # shared on purpose

    def do_POST(self) -> None:
        self.seen.append((self.command, self.path, self.headers["Authorization"]))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def answering() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (
            200,
            b'{"segments": 3, "folded_bytes": 4000, "snapshot_bytes": 1000, "duration_s": 0.21}',
            0,
            "folded 3 segments, 4,000 bytes, into a snapshot of 1,000 bytes in 0.2 s\n",
        ),
        (
            200,
            b'{"segments": 0, "folded_bytes": 0, "snapshot_bytes": 0, "duration_s": 0.0}',
            0,
            "nothing to compact: everything is in the snapshot already\n",
        ),
        (503, b'{"error": "unavailable", "detail": "no room"}', 1, "refused: unavailable: no room\n"),
        (401, b'{"error": "unauthorized"}', 1, "refused: unauthorized\n"),
        (404, b'{"error": "not found"}', 1, "has no log to compact: its keys are on Redis\n"),
        (200, b"<html>", 1, "is no Holdfast (status 200)\n"),
    ],
)
def test_checkpoint_prints_what_the_server_answers(
    answering: str, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, code: int, said: str
) -> None:
    monkeypatch.setattr(Answering, "status", status)
    monkeypatch.setattr(Answering, "body", body)
    monkeypatch.setattr(Answering, "seen", [])
    result = run("checkpoint", "--bind", answering, "--token", "secret")
    assert result.exit_code == code
    assert (result.stderr if code else result.stdout).endswith(said)
    assert Answering.seen == [("POST", "/checkpoint", "Bearer secret")]


def test_checkpoint_says_when_no_server_answers() -> None:
    result = run("checkpoint", "--bind", "127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr == (
        "no answer from http://127.0.0.1:1: Connection refused (--bind says where the server is)\n"
    )
    assert run("checkpoint", "--bind", "127.0.0.1:0").exit_code == 2


# The real process


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "api", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.costly("each tool is a process of its own")
def test_the_tools_work_beside_a_running_server(tmp_path: Path) -> None:
    with Server(tmp_path / "data", "--segment-size", "64KiB", "--token", "secret") as server:
        bind = f"{server.host}:{server.port}"
        result = tool("wal", "verify", server.data)
        assert (result.returncode, result.stderr) == (0, "")
        assert tool("wal", "repair", server.data, "--fix").returncode == 4
        assert tool("checkpoint", "--bind", bind).stderr.endswith("refused: unauthorized: " + result_detail(server))
        done = tool("checkpoint", "--bind", bind, "--token", "secret")
        assert (done.returncode, done.stderr) == (0, "")


def result_detail(server: Server) -> str:
    """What the server says to whoever comes without its token."""
    status, answer = server.post({"command": "PING"})
    assert status == 401
    return f"{answer['detail']}\n"


def test_who_reads_only_the_beginning_of_a_dump_is_no_error(data: Path) -> None:
    last_lsn = 12
    log = dict(CRASHED)
    for lsn in range(last_lsn + 1, last_lsn + 4000):
        log[LAST] += damage.commit(CRASHED, LAST, lsn, (ops.PUT, b"key", b"x" * 50, None))
    put(data, log)
    command = f"{sys.executable} -m api wal dump {data} | head -n 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[1] == "0"
    assert result.stderr == ""
