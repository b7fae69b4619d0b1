"""Every tool with every standard stream that is closed, full, or without a reader: no traceback, and the right code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from api.cli.main import main
from engine.store import ops
from tests.harness import damage
from tests.harness.damage import HEALTHY
from tests.harness.fork_server import launch
from tests.harness.process import ROOT, Server
from tests.harness.waiting import wait_until
from wal.files import DiskDirectory
from wal.log import Log

CLOSED, FOLDED = HEALTHY["closed"], HEALTHY["closed with snapshot"]
LAST = damage.segments(CLOSED)[-1]

TOOLS: dict[str, tuple[str, int, int, int]] = {
    "help": ("--help", 0, 1, 0),
    "version": ("--version", 0, 1, 0),
    "no command": ("", 2, 2, 2),
    "no such command": ("nonsense", 2, 2, 2),
    "no such directory": ("wal dump DATA/x", 2, 2, 2),
    "no log, as JSON": ("wal verify EMPTY --json", 1, 1, 1),
    "verify": ("wal verify DATA", 0, 1, 0),
    "verify of a damaged one": ("wal verify BROKEN", 3, 1, 3),
    "dump": ("wal dump DATA", 0, 1, 0),
    "dump of a damaged one": ("wal dump BROKEN --json", 3, 1, 3),
    "repair": ("wal repair DATA", 0, 1, 0),
    "repair of a damaged one": ("wal repair BROKEN", 3, 1, 3),
    "backup": ("backup DATA COPY", 0, 1, 0),
    "backup of nothing": ("backup EMPTY COPY --json", 1, 1, 1),
    "export": ("export DATA", 0, 1, 1),
    "export to a directory": ("export DATA --to COPY", 0, 1, 0),
    "import": ("import COPY LINES", 0, 1, 0),
    "checkpoint without a server": ("checkpoint --bind 127.0.0.1:1 --json", 1, 1, 1),
}
"""What is run, and its exit code as it is, when stdout takes nothing, and when nobody reads it."""


KINDS = ("closed", "full", "left")

CASES = [
    (tool, kind)
    for number, tool in enumerate(TOOLS)
    for place, kind in enumerate(KINDS)
    if tool in ("help", "verify", "export") or place == number % len(KINDS)
]
"""Each tool with one kind of stream, and those that print in a way of their own with all."""


class Scene:
    """Directories for the tools."""

    def __init__(self, path: Path) -> None:
        self.path = path
        broken = bytearray(CLOSED[LAST])
        broken[140] ^= 1
        self.places = {name: path / name.lower() for name in ("DATA", "BROKEN", "EMPTY", "COPY", "LINES")}
        for name, files in (("DATA", CLOSED), ("BROKEN", CLOSED | {LAST: bytes(broken)}), ("EMPTY", {})):
            self.places[name].mkdir(mode=0o700)
            for file, content in files.items():
                (self.places[name] / file).write_bytes(content)
        self.places["LINES"].write_bytes(LINES)

    def words(self, text: str) -> list[str]:
        """The words of a command line."""
        for name, place in self.places.items():
            text = text.replace(name, str(place))
        return text.split()

    def run(self, text: str, stdin: int | None, stdout: int | None, stderr: int | None, **environment: str) -> int:
        """Runs a tool on these streams; its exit code."""
        everything = {name: value for name, value in os.environ.items() if not name.startswith("HOLDFAST_")}
        with tempfile.TemporaryFile() as nothing:
            fork = launch(self.words(text), everything | environment, nothing, (stdin, stdout, stderr))
            return fork.wait(60)


LINES = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in (
        {"format": "holdfast export", "version": 1, "source": "a test", "entries": 0},
        {"keys": 0, "queues": 0, "values": 0, "checksum": "00000000000000000000000000000000"},
    )
)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@contextlib.contextmanager
def stream(kind: str, number: int) -> Iterator[int | None]:
    """A standard stream in some state."""
    if kind == "closed":
        yield None
        return
    if kind == "left":
        ours, theirs = os.pipe()
        descriptor, other = (ours, theirs) if number == 0 else (theirs, ours)
        os.close(other)
    else:
        descriptor = os.open(
            {"full": "/dev/full", "null": os.devnull}[kind],
            os.O_RDONLY if number == 0 else os.O_WRONLY,
        )
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def captured(path: Path) -> Iterator[int]:
    with path.open("wb") as file:
        yield file.fileno()


@pytest.mark.parametrize(("tool", "kind"), CASES)
def test_whatever_stdout_takes_a_tool_ends_with_its_code_and_no_traceback(scene: Scene, tool: str, kind: str) -> None:
    text, _, unwritten, left = TOOLS[tool]
    with stream("null", 0) as stdin, stream(kind, 1) as stdout, captured(scene.path / "stderr") as stderr:
        code = scene.run(text, stdin, stdout, stderr)
    said = (scene.path / "stderr").read_text()
    assert code == (left if kind == "left" else unwritten), said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if code == 1 and TOOLS[tool][1] != 1 and kind != "left":
        assert said.startswith("cannot write to stdout: "), said
    if text.endswith("COPY") and TOOLS[tool][1] == 0:
        assert (scene.places["COPY"] / "MANIFEST").exists()  # it is done all the same


@pytest.mark.parametrize(("tool", "kind"), CASES[::2])
def test_whatever_stderr_takes_no_exit_code_is_another(scene: Scene, tool: str, kind: str) -> None:
    text, code, *_ = TOOLS[tool]
    with stream("null", 0) as stdin, captured(scene.path / "stdout") as stdout, stream(kind, 2) as stderr:
        assert scene.run(text, stdin, stdout, stderr) == code
    assert "Traceback" not in (scene.path / "stdout").read_text()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("closed", "the input cannot be read: Bad file descriptor"),
        ("left", "the input, line 1: it is missing: there is nothing at all, where an export is expected"),
        ("null", "the input, line 1: it is missing: there is nothing at all, where an export is expected"),
    ],
)
def test_an_import_whose_input_cannot_be_read_says_so(scene: Scene, kind: str, why: str) -> None:
    with stream(kind, 0) as stdin, stream("null", 1) as stdout, captured(scene.path / "stderr") as stderr:
        assert scene.run("import COPY", stdin, stdout, stderr) == 1
    assert (scene.path / "stderr").read_text() == f"{why}\n"
    assert not scene.places["COPY"].exists()


@pytest.mark.parametrize("streams", [(1,), (2,), (0, 1, 2)], ids=str)
def test_a_server_serves_with_standard_streams_closed_and_writes_to_no_file_of_its_own(
    tmp_path: Path, streams: tuple[int, ...]
) -> None:
    """A data file that got number 2 would be written to by whoever complains on stderr."""
    closing = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in streams)
    server = Server(tmp_path / "data", under=("sh", "-c", f'exec "$@" {closing}', "sh"))
    server.launch()
    try:
        wait_until(lambda: (tmp_path / "data" / "00000001.log").exists() or not server.is_running)
        found = [Path(f"/proc/{server.pid}/fd/{number}").readlink() for number in range(3)]
        assert not any(path.is_relative_to(tmp_path / "data") for path in found)
        assert all(found[number] == Path(os.devnull) for number in streams)
        wait_until(lambda: (tmp_path / "data" / "MANIFEST").exists())
    finally:
        server.signal(signal.SIGTERM)
    assert server.wait() == 0


@pytest.mark.parametrize("closing", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_python_that_is_started_without_a_stream_does_the_same(scene: Scene, closing: str) -> None:
    """The others above are forks of one that had them."""
    words = scene.words("backup DATA COPY")
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "api", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == (1 if ">&-" in closing.split() else 0), done.stderr
    assert "Traceback" not in done.stderr
    assert (scene.places["COPY"] / "MANIFEST").exists()


# Ctrl-C


@pytest.mark.parametrize("text", ["import COPY", "checkpoint --bind ADDRESS", "wal dump LONG --json", "export LONG"])
def test_ctrl_c_ends_a_tool_that_waits_with_130_and_no_traceback(scene: Scene, text: str) -> None:
    """For its input, for a server's answer, for whoever reads its output."""
    with socket.create_server(("127.0.0.1", 0)) as mute, contextlib.ExitStack() as stack:
        text = text.replace("ADDRESS", f"127.0.0.1:{mute.getsockname()[1]}")
        if "LONG" in text:
            text = text.replace("LONG", str(filled_with_a_long_value(scene.path / "long")))
        pipes = [os.pipe() for _ in range(2)]
        for descriptor in (one for pipe in pipes for one in pipe):
            stack.callback(os.close, descriptor)
        stderr = stack.enter_context(captured(scene.path / "stderr"))
        with tempfile.TemporaryFile() as nothing:
            fork = launch(scene.words(text), dict(os.environ), nothing, (pipes[0][0], pipes[1][1], stderr))
        wait_until(lambda: waits(fork.pid))
        fork.send_signal(signal.SIGINT)
        assert fork.wait(60) == 130
    assert (scene.path / "stderr").read_text() == "\ninterrupted\n"


def filled_with_a_long_value(path: Path) -> Path:
    """A data directory of more than a pipe holds."""
    log = Log.recover(DiskDirectory(path), lambda _frame: None, time_ms=1)
    log.append([ops.pack((ops.PUT, b"%d" % number, bytes(range(100)) * 20, None)) for number in range(100)], 1)
    log.close()
    return path


def waits(pid: int) -> bool:
    """Whether a process sleeps in the system, over a pipe or a socket."""
    where = Path(f"/proc/{pid}/wchan").read_text()
    return any(word in where for word in ("pipe_read", "pipe_write", "sk_wait_data", "wait_woken"))


@pytest.mark.parametrize(
    "text",
    [
        "wal verify DATA",
        "wal dump DATA",
        "wal repair DATA --fix",
        "backup DATA COPY",
        "export DATA",
        "import COPY LINES",
    ],
)
def test_ctrl_c_at_work_is_130_in_every_tool(scene: Scene, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(DiskDirectory, "names", interrupted)
    result = CliRunner().invoke(main, scene.words(text))
    assert (result.exit_code, result.stderr) == (130, "\ninterrupted\n")


# Another alphabet


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("wal verify DIR", 0),
        ("wal dump DIR --key KEY", 0),
        ("backup DIR DEST", 0),
        ("export DIR --to DEST", 0),
        ("wal dump DIR --file DEST", 1),
        ("KEY", 2),
        ("serve --bind KEY:80", 2),
        ("serve --data DIR --bind 127.0.0.1:0 --fsync KEY", 2),
    ],
)
def test_without_utf_8_paths_that_are_no_text_and_texts_that_are_no_ascii_are_taken(
    tmp_path: Path, text: str, code: int
) -> None:
    scene = Scene(tmp_path)
    places = {b"DIR": os.fsencode(tmp_path) + b"/caf\xe9", b"DEST": os.fsencode(tmp_path) + b"/\xff\xc3\xa9"}
    scene.places["DATA"].rename(os.fsdecode(places[b"DIR"]))
    words = text.encode()
    for name, place in {**places, b"KEY": "\uff4b\u00e9\U0001f600".encode()}.items():
        words = words.replace(name, place)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HOLDFAST_", "LC_", "LANG"))
    }
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [os.fsencode(sys.executable), b"-m", b"api", *words.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    if b"DEST" in text.encode() and code == 0:
        assert Path(os.fsdecode(places[b"DEST"]), "MANIFEST").exists()
