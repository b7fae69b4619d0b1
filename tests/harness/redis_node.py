"""One real Redis process on loopback, and a connection to speak to it; see tests/harness/redis.py for more of them.

Every process dies with the one that started it, however that ends. A port belongs to a node for as long as the node
object lives, also while its process is dead, so that those of several test processes never meet.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from tests.harness.waiting import WITHIN_S, wait_until

POLL_S = 0.02

Word = bytes | str | int


class RedisError(Exception):
    """An error that Redis answered."""


class Wire:
    """A connection that speaks RESP 2, for what tests do behind the engine's back.

    Args:
        port: on loopback.
        password: None is none.
        timeout_s: for each step on the socket.
    """

    def __init__(self, port: int, password: str | None = None, *, timeout_s: float = WITHIN_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_s)
        self._file: BinaryIO = self._socket.makefile("rb")
        if password is not None:
            self.do("AUTH", password)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def do(self, *words: Word) -> Any:
        """Sends one command; raises the error if that is the answer."""
        return self.do_many([words])[0]

    def do_many(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Sends commands in one go; raises the first error among the answers, once all are read."""
        self.send(*commands)
        answers = [self.receive() for _ in commands]
        for answer in answers:
            if isinstance(answer, RedisError):
                raise answer
        return answers

    def send(self, *commands: Sequence[Word]) -> None:
        """Sends commands in one go, and leaves their answers to `receive`."""
        self._socket.sendall(b"".join(map(_packed, commands)))

    def receive(self) -> Any:
        """Reads one answer; an error is returned."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("Redis has closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest
        if kind == b"-":
            return RedisError(rest.decode())
        number = int(rest)
        if kind == b":":
            return number
        if number < 0:
            return None
        if kind == b"$":
            return self._file.read(number + 2)[:-2]
        assert kind == b"*", line
        return [self.receive() for _ in range(number)]


def _packed(words: Sequence[Word]) -> bytes:
    encoded = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


class Port:
    """A port of loopback that nobody else gets until it is closed: only who sets SO_REUSEADDR, as Redis does, and binds
    to this very number, which nobody does who looks for a free one."""

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class RedisNode:
    """A directory, a port, and the Redis processes that come and go there.

    Args:
        directory: made if it is missing.
        options: further ones of `redis-server`, `"--appendonly", "yes"`.
        password: of the default user, also for replication; None is none.
    """

    def __init__(self, directory: Path, *options: str, password: str | None = None) -> None:
        self.directory = directory
        self.password = password
        self._options = options
        self._port, self._bus_port = Port(), Port()
        self._process: subprocess.Popen[bytes] | None = None
        self._paused = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RedisNode({self.port})"

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self._port.number

    @property
    def bus_port(self) -> int:
        """Where the nodes of a cluster connect to each other."""
        return self._bus_port.number

    @property
    def url(self) -> str:
        """For `--engine`."""
        return url_of([self])

    @property
    def is_running(self) -> bool:
        """Whether there is a process that has not ended, and is not paused."""
        return self._process is not None and self._process.poll() is None and not self._paused

    @property
    def log(self) -> str:
        """What all processes so far have written."""
        return (self.directory / "log").read_text()

    def launch(self) -> None:
        """Starts the process without waiting for it."""
        assert threading.current_thread() is threading.main_thread(), "it would die with this thread"
        assert self._process is None, "it was not killed"
        self.directory.mkdir(parents=True, exist_ok=True)
        command = [
            *("setpriv", "--pdeathsig", "KILL", "redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self.directory), "--save", "", "--repl-diskless-sync-delay", "0", "--daemonize", "no"),
            *(("--requirepass", self.password, "--masterauth", self.password) if self.password is not None else ()),
            *self._options,
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start(self) -> None:
        """Starts the process, and returns when it answers."""
        self.launch()
        self.wait_until_answering()

    def wait_until_answering(self) -> None:
        """Returns when it answers; it may still be loading, or out of its cluster."""
        wait_until(self._answers, lambda: f"Redis does not start:\n{self.log}", pause_s=POLL_S)

    def do(self, *words: Word) -> Any:
        """Has a command done by a connection of its own; raises `RedisError`, or `OSError` when there is no answer."""
        with self.wire() as wire:
            return wire.do(*words)

    def do_many(self, commands: Sequence[Sequence[Word]]) -> list[Any]:
        """Has commands done by one connection."""
        with self.wire() as wire:
            return wire.do_many(commands)

    def wire(self) -> Wire:
        """A connection, to be closed."""
        return Wire(self.port, self.password)

    def info(self, section: str) -> dict[str, str]:
        """What INFO says of itself."""
        lines: str = self.do("INFO", section).decode()
        return dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)

    def kill(self) -> None:
        """SIGKILL, also when it is paused."""
        process, self._process, self._paused = self._process, None, False
        assert process is not None, "it is not running"
        process.kill()
        process.wait()

    def pause(self) -> None:
        """SIGSTOP: it answers nothing, and its connections stay open."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self._paused = False

    def revive(self) -> None:
        """Has it run, whatever was done to it; does not wait."""
        if self._paused:
            self.resume()
        elif not self.is_running:
            self.launch()

    def restart(self) -> None:
        """Kills it, and starts it again: without `--appendonly` it has lost its data."""
        self.kill()
        self.start()

    def close(self) -> None:
        """Ends the process, if there is one, and lets the ports go."""
        if self._process is not None:
            self.kill()
        self._port.close()
        self._bus_port.close()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it is not running"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        assert self._process is not None
        code = self._process.poll()
        assert code is None, f"Redis ended with {code}:\n{self.log}"
        try:
            self.do("PING")
        except RedisError as error:
            return not str(error).startswith("LOADING")
        except OSError:
            return False
        return True


def url_of(nodes: Sequence[RedisNode]) -> str:
    """The URL of some nodes, with their password."""
    password = nodes[0].password
    credentials = f":{password}@" if password is not None else ""
    return f"redis://{credentials}{','.join(f'127.0.0.1:{node.port}' for node in nodes)}"
