"""The real process while it starts: what it answers meanwhile (H4), and how it stops then (H1)."""

from __future__ import annotations

import hashlib
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from api.server.stop import EXIT_WITHIN_S
from tests.harness.process import Server, beginning_with
from tests.harness.redis_node import Port
from tests.harness.waiting import WITHIN_S, wait_until

REPLAYS_LATER = """
import time
from pathlib import Path
from engine.embedded import recovery

recover = recovery.recover

def recover_later(*arguments, progress, **options):
    while not Path({go!r}).exists():
        if {tells!r}:
            progress(512_000_000, 1_024_000_000)
        time.sleep(0.01)
    return recover(*arguments, progress=progress, **options)

recovery.recover = recover_later
"""
"""A replay that takes until a file appears; whether it says how far it is, and so may be stopped."""


class Replaying:
    """A server that replays for as long as the test likes."""

    def __init__(self, server: Server, go: Path, port: int) -> None:
        self.server = server
        self.url = f"http://127.0.0.1:{port}"
        self._go = go
        self._address = ("127.0.0.1", port)

    def go_on(self) -> None:
        self._go.touch()

    def get(self, path: str) -> tuple[int, object]:
        answer = httpx.get(self.url + path, timeout=WITHIN_S, trust_env=False)
        return answer.status_code, answer.json()

    def send(self, data: bytes) -> socket.socket:
        client = socket.create_connection(self._address, WITHIN_S)
        client.sendall(data)
        return client


@contextmanager
def replaying(data: Path, scratch: Path, *options: str, tells: bool = True) -> Iterator[Replaying]:
    """A server on a directory with one key, `k`."""
    with Server(data) as before:
        before.post({"command": "SET k v"})
        before.stop()
    go = scratch / "go"
    program = REPLAYS_LATER.format(go=str(go), tells=tells)
    with closing(Port()) as port:
        server = Server(data, "--bind", f"127.0.0.1:{port.number}", *options, under=beginning_with(program, scratch))
        server.launch()
        try:
            started = Replaying(server, go, port.number)
            wait_until(lambda: (data / "LOCK").read_text() == f"process {server.pid}\n")
            yield started
        finally:
            if server.is_running:
                server.kill()


def request(command: str) -> bytes:
    body = b'{"command": "%s"}' % command.encode()
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def received(client: socket.socket, end: bytes) -> bytes:
    """All bytes up to some."""
    data = b""
    while not data.endswith(end):
        piece = client.recv(65536)
        assert piece, f"the server closed behind {data!r}"
        data += piece
    return data


def content_of(directory: Path) -> dict[str, str]:
    """Each file with a checksum; LOCK says who has it."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in directory.iterdir() if file.name != "LOCK"
    }


def test_while_the_log_is_replayed_probes_are_answered_and_commands_wait(tmp_path: Path) -> None:
    """H4: and "listening" is said when it is over."""
    with replaying(tmp_path / "data", tmp_path) as starting:
        wait_until(lambda: "50%" in str(starting.get("/readyz")))
        assert starting.get("/livez") == (200, {"status": "alive"})
        detail = "replaying the log: 50% of 1,024 MB"
        assert starting.get("/readyz") == (503, {"error": "unavailable", "detail": detail})
        with starting.send(request("GET k")) as client, starting.send(b"GET /stats HTTP/1.0\r\n\r\n") as other:
            starting.get("/livez")
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
            assert "listening" not in starting.server.log
            starting.go_on()
            client.settimeout(WITHIN_S)
            assert received(client, b'{"value": "v"}').startswith(b"HTTP/1.1 200 ")
            assert received(other, b"}").startswith(b"HTTP/1.1 200 ")
        wait_until(lambda: starting.get("/readyz") == (200, {"status": "ready", "fsync": "always"}))
        wait_until(lambda: "listening on " in starting.server.log)


def test_without_the_door_all_clients_wait_for_the_replay(tmp_path: Path) -> None:
    asking = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with replaying(tmp_path / "data", tmp_path, "--no-door") as starting, starting.send(asking) as client:
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)
        starting.go_on()
        client.settimeout(WITHIN_S)
        assert received(client, b"}").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("options", [(), ("--no-door",)], ids=["door", "no door"])
def test_sigterm_ends_a_replay_with_0_and_leaves_the_data_as_it_was(tmp_path: Path, options: tuple[str, ...]) -> None:
    """H1: whoever waits for the start is told."""
    with replaying(tmp_path / "data", tmp_path, *options) as starting:
        before = content_of(tmp_path / "data")
        with starting.send(request("SET k w")) as client:
            if not options:
                starting.get("/livez")  # the command has come
            starting.server.signal(signal.SIGTERM)
            if not options:
                assert received(client, b"}").startswith(b"HTTP/1.1 503 ")
        assert starting.server.wait() == 0
        assert "stopped while replaying; nothing was changed" in starting.server.log
        assert content_of(tmp_path / "data") == before


@pytest.mark.costly("waits for the timer that ends it")
def test_sigterm_ends_a_replay_that_hangs_in_time_with_0_and_leaves_the_data_as_it_was(tmp_path: Path) -> None:
    """H1: a disk that does not answer, say."""
    with replaying(tmp_path / "data", tmp_path, tells=False) as starting:
        before = content_of(tmp_path / "data")
        began_s = time.monotonic()
        starting.server.signal(signal.SIGTERM)
        assert starting.server.wait() == 0
        assert time.monotonic() - began_s < EXIT_WITHIN_S + WITHIN_S / 2
        assert "something held the exit up" in starting.server.log
        assert content_of(tmp_path / "data") == before
