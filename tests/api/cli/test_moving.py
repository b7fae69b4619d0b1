"""Moving house by the commands: there and back, what they print, their exit codes, and SIGKILL in the middle."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import pytest
import trio
from click.testing import CliRunner, Result

from api.cli.export_lines import export
from api.cli.main import main
from engine.moving.items import Piece, Plain
from engine.redis.format import IMPORT_KEY
from engine.store import ops
from engine.store.ops import Op
from tests.harness.moving import Dump, Items, dump, everything, fill, silent, state_of
from tests.harness.process import ROOT, Server
from tests.harness.redis import RedisCluster
from tests.harness.waiting import wait_until
from wal.files import DiskDirectory
from wal.replay import IMPORT_NAME
from wal.tools.view import NoLog

NOW_MS = time.time_ns() // 1_000_000
EVERYTHING = everything(NOW_MS)
EXPECTED: Dump = list(state_of(EVERYTHING).dump())


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with one of everything."""
    return filled(tmp_path / "data", EVERYTHING)


def filled(path: Path, content: list[Op]) -> Path:
    fill(DiskDirectory(path), content, NOW_MS)
    return path


def content(path: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in path.iterdir() if one.name != "LOCK"}


def run(*arguments: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=given)


def run_json(*arguments: object, given: bytes | None = None) -> tuple[int, Any]:
    result = run(*arguments, "--json", given=given)
    said = [line for line in result.stderr.splitlines() if not line.startswith(("reading ", "writing "))]
    assert not said, "beside how far it is, which a slow machine is told"
    return result.exit_code, json.loads(result.stdout)


# There and back


def test_from_a_directory_into_a_cluster_and_back_nothing_has_changed(
    data: Path, tmp_path: Path, redis_cluster: RedisCluster
) -> None:
    before = content(data)
    code, there = run_json("export", data, "--to", redis_cluster.url)
    assert (code, there["verified"], there["differences"]) == (0, True, [])
    assert content(data) == before
    code, back = run_json("export", redis_cluster.url, "--to", tmp_path / "back")
    assert (code, back["verified"], back["checksum"]) == (0, True, there["checksum"])
    assert [back[name] for name in ("keys", "queues", "values", "expired")] == [778, 75, 2_583, 0]
    assert dump(tmp_path / "back") == EXPECTED


def test_by_lines_from_a_directory_into_a_cluster_and_back_nothing_has_changed(
    data: Path, tmp_path: Path, redis_cluster: RedisCluster
) -> None:
    there = run("export", data)
    assert there.exit_code == 0
    assert run("import", redis_cluster.url, given=there.stdout_bytes).exit_code == 0
    back = run("export", redis_cluster.url)
    (tmp_path / "lines").write_bytes(back.stdout_bytes)
    assert json.loads(back.stdout_bytes.splitlines()[-1]) == json.loads(there.stdout_bytes.splitlines()[-1])
    assert run("import", tmp_path / "back", tmp_path / "lines").exit_code == 0
    assert dump(tmp_path / "back") == EXPECTED


@pytest.mark.parametrize("by_lines", [False, True])
def test_what_was_written_while_the_clock_was_a_year_ahead_expires_when_it_was_to(
    tmp_path: Path, redis_cluster: RedisCluster, by_lines: bool
) -> None:
    """From a directory into a cluster, and back."""
    year_ms = 365 * 24 * 3600 * 1000
    fill(DiskDirectory(tmp_path / "data"), [(ops.PUT, b"w", b"x", NOW_MS + year_ms + 600_000)], NOW_MS + year_ms)
    places = [tmp_path / "data", redis_cluster.url, tmp_path / "back"]
    for source, destination in pairwise(places):
        if by_lines:
            lines = run("export", source).stdout_bytes
            assert run("import", destination, given=lines).exit_code == 0
        else:
            assert run_json("export", source, "--to", destination)[1]["verified"] is True
    ((_, key, value, deadline_ms),) = dump(tmp_path / "back")
    assert (key, value) == (b"w", b"x")
    assert NOW_MS + 500_000 < deadline_ms < NOW_MS + 700_000


def test_a_server_serves_what_was_moved_in(data: Path, tmp_path: Path) -> None:
    assert run("export", data, "--to", tmp_path / "copy").exit_code == 0
    with Server(tmp_path / "copy") as server:
        assert server.post({"command": "GET empty"}) == (200, {"value": ""})
        assert server.post({"command": "QLEN long"}) == (200, {"value": 2_500})


def test_beside_a_server_lines_are_what_was_there_at_that_moment(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        server.post({"command": "SET a 1"})
        lines = run("export", tmp_path / "data").stdout_bytes.splitlines()
        assert json.loads(lines[1]) == {"key": "a", "value": "1"}
        result = run("export", tmp_path / "data", "--to", tmp_path / "copy")
        assert result.exit_code == 4
        assert f"in use by process {server.pid}" in result.stderr
        server.stop()


# What they print


def test_what_was_done_is_said(data: Path, tmp_path: Path) -> None:
    result = run("export", data)
    checksum = json.loads(result.stdout_bytes.splitlines()[-1])["checksum"]
    counts = "778 keys, 75 queues with 2,583 values"
    assert result.stderr == f"exported {counts}, checksum {checksum}\n"
    done = run("import", tmp_path / "copy", given=result.stdout_bytes)
    assert done.stdout.splitlines() == [
        f"the input is in {tmp_path / 'copy'}: {counts}",
        f"Verified: read back and compared, checksum {checksum}",
    ]


def test_what_expired_is_said(tmp_path: Path) -> None:
    gone: list[Op] = [(ops.PUT, b"gone", b"", 1), (ops.PUT, b"here", b"", None)]
    result = run("export", filled(tmp_path / "data", gone), "--to", tmp_path / "copy")
    assert result.stdout.splitlines()[1] == "Expired, and so not there: 1 key"
    assert run_json("export", tmp_path / "data", "--to", tmp_path / "other")[1]["expired"] == 1


def test_that_an_export_is_cut_is_said_and_the_whole_of_it_is_resumed(data: Path, redis_cluster: RedisCluster) -> None:
    lines = run("export", data).stdout_bytes
    cut = b"\n".join(lines.split(b"\n")[:400]) + b"\n"
    result = run("import", redis_cluster.url, given=cut)
    assert (result.exit_code, result.stderr) == (
        1,
        "the input, line 400: it is cut off here: no last line with counts and a checksum follows\n",
    )
    assert sum(node.do("DBSIZE") for node in redis_cluster.masters) > 390
    code, done = run_json("import", redis_cluster.url, given=lines)
    assert (code, done["resumed_at"], done["verified"]) == (0, 399, True)


def test_lines_that_were_changed_are_refused(data: Path, tmp_path: Path) -> None:
    lines = run("export", data).stdout_bytes
    result = run("import", tmp_path / "copy", given=lines.replace(b'"value 1"', b'"value one"'))
    assert result.exit_code == 1
    assert "the input is not as it was exported: checksum" in result.stderr
    assert run("import", tmp_path / "copy", given=lines).exit_code == 0
    assert dump(tmp_path / "copy") == EXPECTED


def test_what_differs_is_said(data: Path, redis_cluster: RedisCluster) -> None:
    """A key that somebody writes while nobody may."""
    lines = run("export", data).stdout_bytes
    halfway = lines[: lines.rindex(b"\n", 0, len(lines) // 2) + 1]
    assert run("import", redis_cluster.url, given=halfway).exit_code == 1
    redis_cluster.do("SET", b"theirs", "1")
    code, found = run_json("import", redis_cluster.url, given=lines)
    assert (code, found["verified"]) == (1, False)
    assert found["differences"] == [{"kind": "keys without expiry", "expected": 706, "found": 707}]
    result = run("import", redis_cluster.url, given=lines)
    assert result.exit_code == 1
    assert "does NOT hold what the input does:" in result.stderr
    assert "  keys without expiry: 707 instead of 706\nThere is more than was sent" in result.stderr
    redis_cluster.do("DEL", b"theirs")
    assert run("import", redis_cluster.url, given=lines).exit_code == 0


# What is refused


def test_a_damaged_source_exits_3_and_nothing_is_moved(data: Path, tmp_path: Path) -> None:
    name = max(content(data), key=lambda name: len(content(data)[name]))
    broken = bytearray((data / name).read_bytes())
    broken[len(broken) // 2] ^= 1
    (data / name).write_bytes(broken)
    for arguments in ([], ["--to", tmp_path / "copy"]):
        result = run("export", data, *arguments)
        assert result.exit_code == 3
        assert f"{data}/{name} is damaged at offset" in result.stderr
        assert result.stdout == ""
    assert not (tmp_path / "copy").exists()


def test_a_place_that_is_held_exits_4(data: Path, tmp_path: Path) -> None:
    held = DiskDirectory(tmp_path / "held")
    try:
        assert run("export", data, "--to", tmp_path / "held").exit_code == 4
    finally:
        held.close()


def test_a_redis_that_fronts_work_on_exits_4(data: Path, tmp_path: Path, redis_cluster: RedisCluster) -> None:
    with Server(tmp_path / "front", engine=redis_cluster.url):
        for result in (run("export", redis_cluster.url), run("export", data, "--to", redis_cluster.url)):
            assert result.exit_code == 4
            assert result.stdout == ""
            assert "is in use by a front at " in result.stderr
    assert run("export", redis_cluster.url).exit_code == 0


def test_a_server_at_work_is_to_be_stopped_before_its_directory_is_moved(data: Path, tmp_path: Path) -> None:
    server = DiskDirectory(data)
    try:
        result = run("export", data, "--to", tmp_path / "copy")
    finally:
        server.close()
    assert result.exit_code == 4
    assert result.stderr.endswith("; stop it, or export without --to\n")
    assert not (tmp_path / "copy").exists()


def test_a_place_that_is_not_empty_exits_1(data: Path, tmp_path: Path, redis_cluster: RedisCluster) -> None:
    for place in (filled(tmp_path / "other", EVERYTHING[:3]), redis_cluster.url):
        redis_cluster.do("SET", b"a", "1")
        code, found = run_json("export", data, "--to", place)
        assert code == 1
        assert "is not empty" in found["error"]
    assert [row[1] for row in dump(tmp_path / "other")] == [b"key 0", b"key 1", b"key 2"]


def test_an_import_that_is_not_finished_is_neither_served_nor_exported_nor_another_ones_place(
    data: Path, tmp_path: Path
) -> None:
    lines = run("export", data).stdout_bytes
    assert run("import", tmp_path / "copy", given=lines[: len(lines) // 2]).exit_code == 1
    assert (tmp_path / "copy" / IMPORT_NAME).exists()
    server = Server(tmp_path / "copy")
    server.launch()
    assert server.wait() == 1
    assert "holds an import that was not finished" in server.log
    for tool in (["export", tmp_path / "copy"], ["backup", tmp_path / "copy", tmp_path / "backup"]):
        result = run(*tool)
        assert (result.exit_code, "holds an import that was not finished" in result.stderr) == (1, True)
    assert not any((tmp_path / "backup").glob("*.log"))
    other = filled(tmp_path / "other", EVERYTHING[:3])
    result = run("export", other, "--to", tmp_path / "copy")
    assert (result.exit_code, "from another source that was not finished" in result.stderr) == (1, True)
    verified = run("wal", "verify", tmp_path / "copy")
    assert verified.exit_code == 1
    assert "NOT FINISHED, but whole: every checksum fits" in verified.stdout
    assert "A server does not start on it: " in verified.stdout
    assert "run the command that began it again, or remove the directory" in verified.stdout
    repaired = run("wal", "repair", tmp_path / "copy")
    assert (repaired.exit_code, "A server does not start on it: " in repaired.stdout) == (0, True)
    assert run("import", tmp_path / "copy", given=lines).exit_code == 0
    assert dump(tmp_path / "copy") == EXPECTED


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["export", "nowhere"], 2, "nowhere is no directory"),
        (["export", "redis://"], 2, "a host is missing"),
        (["export", "http://127.0.0.1"], 2, "expected redis://"),
        (["export", ".", "--json"], 2, "--json takes --to"),
        (["import", "copy", "nowhere"], 2, "No such file"),
        (["export", "redis://127.0.0.1:1"], 1, "127.0.0.1:1 does not answer"),
        (["export", "empty"], 1, "there is no log in"),
    ],
)
def test_what_cannot_be_done_exits_1_and_what_makes_no_sense_2(
    arguments: list[str], code: int, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir(mode=0o700)
    result = run(*arguments)
    assert result.exit_code == code
    assert complaint in result.stderr
    assert "Traceback" not in result.stderr


def test_without_the_library_for_redis_it_says_how_to_get_it(data: Path) -> None:
    program = "import sys; sys.modules['coredis'] = None; from api.cli.main import main; main()"
    command = [sys.executable, "-c", program, "export", str(data), "--to", "redis://127.0.0.1:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "run pip install '.[cluster]' in the source directory of Holdfast" in done.stderr


# SIGKILL


@contextmanager
def started(*arguments: object, given: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """The real process; it is killed in any case."""
    command = [sys.executable, "-m", "api", *map(str, arguments)]
    stdin = subprocess.PIPE if given else subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def feed(pipe: IO[bytes] | None, lines: list[bytes], is_far_enough: Callable[[int], bool]) -> int:
    """Feeds lines until it is so; returns how many, which are not all."""
    assert pipe is not None
    for start in range(0, len(lines), 500):
        pipe.writelines(lines[start : start + 500])
        pipe.flush()
        if is_far_enough(start + 500):
            return start + 500
        time.sleep(0.1)  # how far it is it notes once a second
    raise AssertionError("all lines are read, and it is not there yet")


def long_export(value_bytes: int) -> tuple[Items, bytes]:
    """Keys, and a queue of thousands of lines."""
    source = Items(state_of([]))
    values = [b"%d " % number + bytes(value_bytes) for number in range(30_000)]
    source.items = [Plain(b"key %d" % number, b"v", None) for number in range(1_000)]
    source.items += [Piece(b"q", first, tuple(values[first : first + 3])) for first in range(0, len(values), 3)]
    source.items += [Piece(b"r", 0, ())]
    out = BytesIO()
    trio.run(export, source, out.write, silent)
    return source, out.getvalue()


def test_an_import_into_a_cluster_that_is_killed_in_the_middle_of_a_queue_is_resumed_exactly(
    redis_cluster: RedisCluster, tmp_path: Path
) -> None:
    source, lines = long_export(value_bytes=5)

    def noted(fed: int) -> bool:
        """Waits until all but what is on its way has arrived, so that a slow process sees lines for seconds as well."""
        wait_until(lambda: keys() + redis_cluster.do("LLEN", b"q") // 3 > fed - 1_700, lambda: f"{fed} do not arrive")
        return int((redis_cluster.do("GET", IMPORT_KEY) or b"0").split()[0]) > 1_500

    def keys() -> int:
        return sum(node.do("DBSIZE") for node in redis_cluster.masters)

    with started("import", redis_cluster.url, given=True) as process:
        fed = feed(process.stdin, lines.splitlines(keepends=True), noted)
        process.kill()
    assert 0 < redis_cluster.do("LLEN", b"q") <= 3 * fed
    code, done = run_json("import", redis_cluster.url, given=lines)
    assert (code, done["verified"], done["resumed_at"]) == (0, True, done["resumed_at"])
    assert 1_500 < done["resumed_at"] <= fed
    expected = [value for item in source.items if isinstance(item, Piece) for value in item.values]
    assert redis_cluster.do("LRANGE", b"q", 1, -1) == expected
    assert keys() == 1_002


@pytest.mark.costly("each import is a process of its own")
def test_an_import_into_a_directory_that_is_killed_in_the_middle_of_a_queue_is_resumed_exactly(tmp_path: Path) -> None:
    source, lines = long_export(value_bytes=1_000)
    copy = tmp_path / "copy"

    def arrived() -> Dump:
        try:
            return dump(copy)
        except (NoLog, FileNotFoundError):
            return []

    with started("import", copy, given=True) as process:
        feed(process.stdin, lines.splitlines(keepends=True), lambda _fed: len(arrived()) > 1_000)
        process.kill()
    assert len(arrived()) == 1_001
    assert run("import", copy, given=lines).exit_code == 0
    expected = [value for item in source.items if isinstance(item, Piece) for value in item.values]
    assert [row[2] for row in dump(copy) if row[1] == b"q"] == [tuple(expected)]
    assert len(dump(copy)) == 1_002


def test_an_export_into_a_cluster_that_is_killed_is_resumed_exactly(
    data: Path, tmp_path: Path, redis_cluster: RedisCluster
) -> None:
    """One master holds it up until it is killed."""
    home = redis_cluster.master_of(IMPORT_KEY)
    slow = next(node for node in redis_cluster.masters if node is not home)
    others = [node for node in redis_cluster.masters if node is not slow]
    slow.do("CLIENT", "PAUSE", 600_000, "WRITE")
    try:
        with started("export", data, "--to", redis_cluster.url) as process:
            wait_until(lambda: min(node.do("DBSIZE") for node in others) > 20, lambda: f"it ended: {process.poll()}")
            assert process.poll() is None
            process.kill()
    finally:
        slow.do("CLIENT", "UNPAUSE")
    assert run("export", redis_cluster.url).exit_code == 1
    assert run("export", data, "--to", redis_cluster.url).exit_code == 0
    assert run("export", redis_cluster.url, "--to", tmp_path / "back").exit_code == 0
    assert dump(tmp_path / "back") == EXPECTED


def test_a_move_that_is_done_leaves_no_note_behind_and_is_not_done_twice(
    data: Path, redis_cluster: RedisCluster
) -> None:
    assert run("export", data, "--to", redis_cluster.url).exit_code == 0
    assert redis_cluster.do("EXISTS", IMPORT_KEY) == 0
    result = run("export", data, "--to", redis_cluster.url)
    assert (result.exit_code, "is not empty" in result.stderr) == (1, True)
