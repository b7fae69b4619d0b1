"""The servers that are compared: each a real process on loopback, with a directory of its own, ended in all cases.

with Redis(directory / "redis") as redis, Webdis(directory / "webdis", redis) as webdis:
    print(webdis.url)

All that keep anything on disk are told to have it there before they answer. Each dies with the benchmark, too, should
that be killed (`setpriv --pdeathsig`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.process import Server

PACKAGES = {
    "redis-server": "redis-server",
    "webdis": "webdis",
    "wrk": "wrk",
    "beanstalkd": "beanstalkd",
    "go": "golang-go",
    "setpriv": "util-linux",
}
"""Which Debian package has each command."""

START_WITHIN_S = 30.0
END_WITHIN_S = 10.0
BUILD_WITHIN_S = 300.0

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")


class NotMeasured(Exception):
    """Why there is no figure."""


def missing_packages(commands: Iterable[str] = PACKAGES) -> list[str]:
    """Debian packages of the commands that are not here."""
    return [PACKAGES[command] for command in commands if shutil.which(command) is None]


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def resident_bytes(pid: int) -> int:
    """Resident size of a process."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """CPU time that a process has used since its start, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(condition: Callable[[], bool], what: str, within_s: float = START_WITHIN_S) -> None:
    """Polls; a process has no event to wait for.

    Raises:
        NotMeasured: it did not come to pass.
    """
    deadline_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise NotMeasured(f"{what}: not within {within_s:.0f} s")
        time.sleep(0.01)


class Peer:
    """A server process, and the directory that is its own.

    Args:
        directory: made if it is not there.
        command: what to run; its output goes to the file `log` in the directory.
        port: where it listens.
        environment: beside ours.
    """

    def __init__(
        self, directory: Path, command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.port = port
        self._command = command
        self._environment = {**os.environ, **(environment or {})}
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*DIES_WITH_US, *self._command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=self._environment,
            )
        try:
            wait_until(self._is_ready, f"{self._command[0]} answers")
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def host(self) -> str:
        """Where it listens."""
        return "127.0.0.1"

    @property
    def url(self) -> str:
        """Where it listens, if it speaks HTTP."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> str:
        """What it has written."""
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        self._process.terminate()
        try:
            self._process.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        code = self._process.poll()
        if code is not None:
            raise NotMeasured(f"{self._command[0]} ended with {code}: {last_line(self.log)}")
        try:
            with socket.create_connection((self.host, self.port), timeout=1):
                return True
        except OSError:
            return False


class Redis(Peer):
    """A redis-server that saves no dumps and keeps an append-only file.

    Args:
        directory: of its data.
        fsync: its `appendfsync`.
        options: further ones.
    """

    def __init__(self, directory: Path, fsync: str = "always", options: Mapping[str, str] | None = None) -> None:
        port = free_port()
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(directory.resolve()),
            "save": "",
            "appendonly": "yes",
            "appendfsync": fsync,
            "maxclients": "15000",
            **(options or {}),
        }
        arguments = [word for name, value in settings.items() for word in (f"--{name}", value)]
        super().__init__(directory, ["redis-server", *arguments], port)

    def ask(self, *words: str) -> bytes:
        """Sends a command of plain words; returns the beginning of its answer as it came."""
        with socket.create_connection((self.host, self.port), timeout=START_WITHIN_S) as connection:
            connection.sendall(resp(*words))
            return connection.recv(65_536)

    def _is_ready(self) -> bool:
        return super()._is_ready() and self.ask("PING") == b"+PONG\r\n"


def resp(*words: str) -> bytes:
    """A command in Redis's protocol."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


class Webdis(Peer):
    """Webdis in front of a redis-server; two threads, as its package has it."""

    def __init__(self, directory: Path, redis: Redis) -> None:
        port = free_port()
        directory.mkdir(exist_ok=True)
        settings = {
            "redis_host": redis.host,
            "redis_port": redis.port,
            "redis_auth": None,
            "http_host": "127.0.0.1",
            "http_port": port,
            "threads": 2,
            "daemonize": False,
            "verbosity": 0,
            "logfile": str(directory.resolve() / "webdis.log"),
        }
        file = directory.resolve() / "webdis.json"
        file.write_text(json.dumps(settings))
        super().__init__(directory, ["webdis", str(file)], port)


class Beanstalkd(Peer):
    """A beanstalkd that syncs each record of its log."""

    def __init__(self, directory: Path) -> None:
        port = free_port()
        command = ["beanstalkd", "-l", "127.0.0.1", "-p", str(port), "-b", str(directory.resolve()), "-f0"]
        super().__init__(directory, command, port)


class MapServer(Peer):
    """The map behind Go's net/http, on so many cores; see `mapserver.go`."""

    def __init__(self, directory: Path, binary: Path, cores: int) -> None:
        port = free_port()
        command = [str(binary.resolve()), f"127.0.0.1:{port}"]
        super().__init__(directory, command, port, {"GOMAXPROCS": str(cores)})


def build_map_server(directory: Path) -> Path:
    """Compiles `mapserver.go`.

    Raises:
        NotMeasured: Go does not like it.
    """
    binary = directory / "mapserver"
    source = Path(__file__).with_name("mapserver.go")
    built = subprocess.run(
        ["go", "build", "-o", str(binary), str(source)],
        env={**os.environ, "GO111MODULE": "off"},
        capture_output=True,
        text=True,
        timeout=BUILD_WITHIN_S,
        check=False,
    )
    if built.returncode:
        raise NotMeasured(f"go build: {last_line(built.stderr)}")
    return binary


@contextmanager
def holdfast(directory: Path, *options: str, engine: str | None = None) -> Iterator[Server]:
    """`holdfast serve` with the settings it has when nobody changes them, beside these options.

    Args:
        directory: of its data; of a front only what its log is called by.
        options: of the command.
        engine: URL of the Redis that a front keeps its data in; None is the embedded engine.
    """
    server = Server(directory, *options, engine=engine, under=DIES_WITH_US)
    try:
        with server:
            yield server
    finally:
        if server.is_running:  # it has not said in time that it is ready
            server.kill()


def last_line(text: str) -> str:
    """The last line with anything on it: where programs say why they end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it did not say why"
