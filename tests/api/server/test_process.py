"""The real process: restarts, locks, signals, exit codes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api.http.refusals import SELDOM_S
from api.server.stop import SAME_SIGNAL_S
from tests.harness.process import END_WITHIN_S, ROOT, Server, beginning_with
from tests.harness.waiting import WITHIN_S, wait_until
from wal.segment import HEADER_BYTES

HELD_UP_S = 30.0
"""A client that reads nothing for so long is given up in any case."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


def stat_of(server: Server, name: str) -> int:
    number: int = server.get("/stats")[1][name]
    return number


def test_what_was_answered_is_there_after_sigkill(server: Server) -> None:
    assert server.post({"command": "SET hello world"}) == (200, None)
    assert server.post({"command": "QPUSH jobs a b c"}) == (200, None)
    assert server.post({"command": "BQPOP jobs"}) == (200, {"value": "a"})
    server.kill()
    server.start()
    assert server.post({"command": "GET hello"}) == (200, {"value": "world"})
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 2})
    assert "replayed 3 records" in server.log


def test_the_start_line_says_where_what_how_fast_and_the_fsync_policy(server: Server) -> None:
    first = server.log.splitlines()[0]
    for part in (
        f"listening on {server.url}",
        f"data in {server.data}, new, empty, fsync always",
    ):
        assert part in first
    server.kill()
    server.start()  # not new any more, and as empty as it was
    again = server.log.splitlines()[0]
    for part in (f"data in {server.data}, replayed 0 records in ", "/s), fsync always"):
        assert part in again


def test_a_clean_stop_exits_0_and_the_next_start_is_silent(server: Server) -> None:
    server.post({"command": "SET k v"})
    server.stop()
    server.start()
    assert server.post({"command": "GET k"}) == (200, {"value": "v"})
    assert len(server.log.splitlines()) == 1


def test_a_second_server_on_the_directory_exits_4_at_once_and_names_the_holder(server: Server) -> None:
    """B15."""
    second = Server(server.data)
    second.log_file = server.log_file.with_name("second.log")
    second.launch()
    assert second.wait() == 4
    assert f"in use by process {server.pid}" in second.log
    assert server.post({"command": "PING"}) == (200, {"value": "PONG"})


def test_a_taken_port_exits_1_before_the_data_is_touched(server: Server, tmp_path: Path) -> None:
    """H4."""
    other = Server(tmp_path / "other", "--bind", f"127.0.0.1:{server.port}")
    other.launch()
    assert other.wait() == 1
    assert "Address already in use" in other.log
    assert not other.data.exists()


def test_damage_exits_3_names_file_offset_and_record_and_changes_nothing(server: Server) -> None:
    """A2, A3: a record in the middle, with later ones that prove it had been on disk."""
    for number in range(5):
        server.post({"command": f"SET key{number} value"})
    server.kill()
    segment = server.data / "00000001.log"
    data = bytearray(segment.read_bytes())
    frame_bytes = (len(data.rstrip(b"\0")) - HEADER_BYTES) // 5
    data[HEADER_BYTES + 2 * frame_bytes + 20] ^= 1
    segment.write_bytes(data)
    server.launch()
    assert server.wait() == 3
    offset = HEADER_BYTES + 2 * frame_bytes
    assert f"00000001.log is damaged at offset {offset}, record 3: " in server.log
    assert f"see: holdfast wal verify {server.data}" in server.log
    assert segment.read_bytes() == bytes(data)


def test_a_torn_tail_heals_with_one_warning(server: Server) -> None:
    """A1."""
    server.post({"command": "SET a 1"})
    server.post({"command": "SET b 2"})
    server.kill()
    segment = server.data / "00000001.log"
    os.truncate(segment, len(segment.read_bytes().rstrip(b"\0")) - 3)
    server.start()
    assert server.post({"command": "GET a"}) == (200, {"value": "1"})
    assert server.post({"command": "GET b"})[0] == 404
    assert server.log.count("WARNING") == 1
    server.kill()
    server.start()
    assert "WARNING" not in server.log


def test_sigterm_answers_parked_clients_503_and_exits_0(server: Server) -> None:
    """E8, H1."""
    with ThreadPoolExecutor(8) as pool:
        parked = [pool.submit(server.post, {"command": "BQPOP jobs"}) for _ in range(8)]
        wait_until(lambda: stat_of(server, "waiters") == 8)
        server.stop()
        for future in parked:
            assert future.result() == (503, {"error": "unavailable", "detail": "shutting down"})
    server.start()
    assert server.get("/stats")[1]["lsn"] == 0


def test_a_pop_whose_answer_was_handed_over_is_gone_with_the_client_and_delivered_to_nobody_else(
    server: Server,
) -> None:
    """E6: the answer is in the socket's buffer when the client resets; at most once means that it is lost."""
    server.post({"command": "QPUSH jobs a b"})
    body = b'{"command": "BQPOP jobs"}'
    with socket.create_connection((server.host, server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        client.recv(1, socket.MSG_PEEK)  # it is here, and is not read
    assert server.post({"command": "BQPOP jobs"}) == (200, {"value": "b"})
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 0})
    server.kill()
    server.start()
    assert server.post({"command": "QLEN jobs"}) == (200, {"value": 0})


def test_a_client_that_leaves_in_the_middle_of_its_request_leaves_no_waiter(server: Server) -> None:
    """E1"""
    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 25\r\n\r\n{"command": "BQPOP')
        wait_until(lambda: stat_of(server, "requests_open") == 2)
    wait_until(lambda: stat_of(server, "requests_open") == 1)
    assert stat_of(server, "commands") == 0


@contextlib.contextmanager
def not_reading(server: Server) -> Iterator[None]:
    """A client that has asked for 20 MB and does not read them."""
    server.post({"command": "SET", "key": "big", "value": "x" * 1_000_000})
    body = b'{"command": "GET big"}'
    request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with socket.create_connection((server.host, server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(request * 20)
        wait_until(lambda: stat_of(server, "commands") >= 2)
        yield


def test_a_client_that_does_not_read_cannot_hold_up_the_exit(server: Server) -> None:
    """F5, H1."""
    with not_reading(server):
        server.signal(signal.SIGTERM)
        assert server.wait(HELD_UP_S - 5) == 0


def test_a_log_that_nobody_reads_cannot_hold_up_the_exit(tmp_path: Path) -> None:
    """H1"""
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "api", "serve", "--data", str(tmp_path / "data"), "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=theirs, cwd=ROOT) as process:
        try:
            while b"listening on" not in os.read(ours, 4096):
                pass
            os.set_blocking(theirs, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(theirs, b"x" * 4096)
            os.set_blocking(theirs, True)  # it is the server's as well
            process.send_signal(signal.SIGTERM)
            process.wait(END_WITHIN_S)
        finally:
            process.kill()
    os.close(ours)
    os.close(theirs)


NO_HURRY = """
import api.server.http, api.server.stop

api.server.http.ByDoor.__init__.__kwdefaults__["grace_s"] = 600.0
api.server.stop.EXIT_WITHIN_S = 600
"""


def test_a_second_signal_exits_now(server: Server, tmp_path: Path) -> None:
    """H1: answers in flight hold the shutdown up, here for longer than this takes."""
    server.stop()
    server.under = beginning_with(NO_HURRY, tmp_path)
    server.start()
    with not_reading(server):
        server.signal(signal.SIGTERM)
        wait_until(lambda: "SIGTERM: shutting down" in server.log)
        server.signal(signal.SIGTERM)  # the same once more, as timeout(1) sends it to the process and to its group
        time.sleep(SAME_SIGNAL_S + 0.1)
        server.signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM
    server.start()
    assert "WARNING" not in server.log


def test_out_of_descriptors_the_server_goes_on(server: Server) -> None:
    """B6: idle connections take every descriptor, and the log has to roll meanwhile. Probes come on new connections."""
    server.post({"command": "PING"})  # from here on on a connection that is there
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (80, 80))
    began_s = time.monotonic()
    with contextlib.ExitStack() as clients:
        for _ in range(100):
            clients.enter_context(socket.create_connection((server.host, server.port)))
        for number in range(70):
            assert server.post({"command": "SET", "key": f"k{number}", "value": "x" * 1_000_000})[0] == 200
        for path, status in (("/livez", 200), ("/readyz", 200), ("/stats", 503)):
            assert httpx.get(server.url + path, timeout=WITHIN_S, trust_env=False).status_code == status
    assert server.log.count("too many connections: ") <= 1 + (time.monotonic() - began_s) // SELDOM_S
    assert "cannot accept" not in server.log
    server.kill()
    server.start()
    assert stat_of(server, "keys") == 70


def test_without_a_single_descriptor_the_application_answers_all_the_same(server: Server) -> None:
    """B6, F13: on connections that are there. Nothing in the log tells of a defect."""
    assert server.post({"command": "PING"})[0] == 200
    began_s = time.monotonic()
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (3, 3))  # what is open stays open
    for path, status in (("/livez", 200), ("/readyz", 200), ("/stats", 200), ("/nothing", 404)):
        for _ in range(3):
            assert server.get(path)[0] == status
    assert server.post({"command": "SET k v"})[0] == 200
    assert [line for line in server.log.splitlines() if " INFO " not in line] == []
    for _ in range(20):
        refused, answer = server.post(b"", "/checkpoint")
        assert (refused, answer["error"]) == (503, "unavailable")
    assert server.log.count("checkpoint failed") <= 1 + (time.monotonic() - began_s) // SELDOM_S
    assert "Traceback" not in server.log


def test_where_files_may_not_grow_long_the_server_goes_on(tmp_path: Path) -> None:
    """B3, C4: a command, and later a snapshot, would be longer than any file may be."""
    with Server(tmp_path / "data", "--segment-size", "1MiB") as server:
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        assert server.post({"command": "QPUSH", "key": "q", "value": ["x" * 1_000_000] * 6})[0] == 507
        wait_until(lambda: server.post({"command": "SET k v"})[0] == 200)
        for number in range(6):
            assert server.post({"command": "SET", "key": f"k{number}", "value": "x" * 1_000_000})[0] == 200

        def checkpoint_failed_behind_one_more_write() -> bool:
            # One that came while there were few keys has succeeded, and the next is not due before more is written.
            assert server.post({"command": "SET", "key": "k0", "value": "x" * 1_000_000})[0] == 200
            return stat_of(server, "checkpoint_failures") > 0

        wait_until(checkpoint_failed_behind_one_more_write)
        wait_until(lambda: "File too large" in server.log)  # a thread writes the log
        assert server.post({"command": "SET k w"})[0] == 200
        server.stop()
        server.start()
        assert stat_of(server, "keys") == 7


def test_sighup_and_sigusr1_do_not_end_the_server(server: Server) -> None:
    """H2"""
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGUSR1)
    wait_until(lambda: 'SIGUSR1: {"keys": 0,' in server.log)
    assert server.post({"command": "PING"}) == (200, {"value": "PONG"})


def test_beyond_loopback_a_token_is_needed(tmp_path: Path) -> None:
    open_to_all = Server(tmp_path / "data", "--bind", "0.0.0.0:0")
    open_to_all.launch()
    assert open_to_all.wait() == 1
    assert "--token" in open_to_all.log
    with Server(tmp_path / "data", "--bind", "0.0.0.0:0", "--token", "secret") as guarded:
        assert guarded.post({"command": "PING"})[0] == 401
    with Server(tmp_path / "data", "--bind", "0.0.0.0:0", "--insecure") as insecure:
        assert insecure.post({"command": "PING"})[0] == 200
        assert "INSECURE" in insecure.log


def test_without_the_door_only_loopback_is_served(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "[::]"):
        exposed = Server(tmp_path / "data", "--no-door", "--bind", f"{host}:0", "--token", "secret")
        exposed.launch()
        assert exposed.wait() == 1
        assert "--no-door listens on loopback only" in exposed.log
        assert not exposed.data.exists()


@pytest.mark.parametrize("options", [(), ("--no-door",)], ids=["door", "hypercorn"])
def test_f11_f12_a_flood_of_refused_requests_is_no_flood_of_lines(tmp_path: Path, options: tuple[str, ...]) -> None:
    """F11, F12: 41 bytes, `head /livez`, wrote a traceback of 3.3 KB each."""
    requests = [
        b"head /livez HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /stats HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /stats HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    ]
    with Server(tmp_path / "data", "--token", "secret", *options) as server:
        lines = server.log.count("\n")
        for request in requests * 20:
            with socket.create_connection((server.host, server.port)) as client:
                client.sendall(request)
                assert client.recv(4096).startswith(b"HTTP/1.1 ")
        assert server.log.count("\n") == lines + 2
        assert server.log.count("401 unauthorized, send the token as") == 1
        assert server.log.count("403 forbidden, the Host header 'evil.example'") == 1
        assert "Traceback" not in server.log
        assert "secret" not in server.log


def test_the_data_directory_is_for_its_owner_only(server: Server) -> None:
    """B16."""
    server.post({"command": "SET k v"})
    assert stat.S_IMODE(server.data.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in server.data.iterdir()} == {0o600}
