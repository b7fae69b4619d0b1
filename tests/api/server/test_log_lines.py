"""The server's own log: whoever does not read it holds nobody up."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from api.server.log_lines import LineWriter
from tests.harness.process import END_WITHIN_S, ROOT
from tests.harness.redis_node import Port
from tests.harness.waiting import wait_until


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe as small as pipes are, full to the last byte."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x")
    os.set_blocking(writer, True)
    yield reader, writer
    for descriptor in (reader, writer):
        with suppress(OSError):
            os.close(descriptor)


def log(handler: LineWriter, *lines: str) -> None:
    for line in lines:
        handler.handle(logging.LogRecord("test", logging.INFO, "", 0, line, None, None))


def read_until(reader: int, end: bytes) -> bytes:
    found = b""
    while not found.endswith(end):
        found += os.read(reader, 65536)
    return found


def test_lines_are_written_in_their_order_and_a_flush_waits_for_them() -> None:
    reader, writer = os.pipe()
    handler = LineWriter(writer)
    log(handler, "one", "two \ud800", "zwölf")
    handler.flush()
    assert os.read(reader, 100) == "one\ntwo \\ud800\nzwölf\n".encode()
    os.close(reader)
    os.close(writer)


def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: tuple[int, int]) -> None:
    """H1: neither those who log nor a flush wait for ever."""
    reader, writer = pipe
    handler = LineWriter(writer, lines_max=3)
    log(handler, "first")
    wait_until(handler._lines.empty)  # the thread has it, and cannot write it
    log(handler, *map(str, range(10)))
    handler.flush()
    end = b"7 lines of the log could not be written, and dropped\n"
    assert read_until(reader, end + b"0\n1\n2\n").lstrip(b"x") == b"first\n" + end + b"0\n1\n2\n"


def test_a_reader_that_has_gone_costs_lines_and_nothing_else(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    handler = LineWriter(writer)
    log(handler, *map(str, range(100)))
    handler.flush()
    assert handler._dropped == 100


def test_a_descriptor_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    handler = LineWriter(writer)
    log(handler, "a" * 10_000, "b")
    assert read_until(reader, b"b\n").lstrip(b"x") == b"a" * 10_000 + b"\nb\n"


@contextmanager
def serving(data: Path, stderr: int) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A real server with a stderr of the test's, and a client of it."""
    with closing(Port()) as port, httpx.Client(base_url=f"http://127.0.0.1:{port.number}", timeout=60) as client:
        options = ("serve", "--data", str(data), "--bind", f"127.0.0.1:{port.number}")
        process = subprocess.Popen([sys.executable, "-m", "api", *options], stderr=stderr, cwd=ROOT)
        try:
            wait_until(lambda: answers(client) or process.poll() is not None)
            yield process, client
        finally:
            process.kill()
            process.wait()


def answers(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/livez").status_code == 200
    return False


@pytest.mark.parametrize("kind", ["full pipe", "closed pipe", "full disk"])
def test_a_server_whose_log_cannot_be_written_serves_and_ends_as_any(
    tmp_path: Path, pipe: tuple[int, int], kind: str
) -> None:
    """H1: also when the log cannot be written from the start on."""
    reader, stderr = pipe
    full_disk = os.open("/dev/full", os.O_WRONLY)
    if kind == "closed pipe":
        os.close(reader)
    if kind == "full disk":
        stderr = full_disk
    with serving(tmp_path / "data", stderr) as (process, client):
        for _ in range(50):
            process.send_signal(signal.SIGUSR1)  # a line of the log each
            assert client.post("/", content=b'["PING"]').status_code == 400
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as parked:
            body = b'{"command": "BQPOP q"}'
            parked.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            wait_until(lambda: client.get("/stats").json()["waiters"] == 1)
            process.send_signal(signal.SIGTERM)
            assert parked.recv(100).startswith(b"HTTP/1.1 503 ")
        assert process.wait(END_WITHIN_S) == 0
    os.close(full_disk)
