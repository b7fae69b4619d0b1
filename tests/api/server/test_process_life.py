"""The real process over its life: signals, its child, starting, memory, a small soak, and Python at its strictest."""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from engine.embedded.fold import fold
from engine.embedded.recovery import recover
from engine.limits import MIB, Limits
from engine.store import ops
from tests.harness.logs import append
from tests.harness.process import EXECUTED, Server, beginning_with, child_of, stopping_in_a_checkpoint
from tests.harness.redis_node import Port
from tests.harness.waiting import WITHIN_S, wait_until
from wal.files import DiskDirectory
from wal.log import Log


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "data") as server:
        yield server


@pytest.fixture
def executed(tmp_path: Path) -> Iterator[Server]:
    """One whose memory is all its own."""
    with Server(tmp_path / "data", under=EXECUTED) as server:
        yield server


def stat_of(server: Server, name: str) -> int:
    number: int = server.get("/stats")[1][name]
    return number


def request(command: str) -> bytes:
    body = b'{"command": "%s"}' % command.encode()
    return b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def receive(client: socket.socket) -> bytes:
    """The next bytes of an answer."""
    data = client.recv(65536)
    assert data, "the server closed the connection"
    return data


def state_of(pid: int) -> str:
    """One letter, as the system has it: T is stopped; Z, ended, for one that is gone as well."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def oom_score_adj_of(pid: int) -> int:
    """How early the kernel ends a process when memory is short."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def status_of(pid: int, name: str) -> int:
    """A number from the system's books of a process; memory is in KiB."""
    return int(re.findall(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0])


def can_connect(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_answers_the_parked_and_leaves_a_clean_log(server: Server, number: signal.Signals) -> None:
    """H1, H2"""
    server.post({"command": "SET k v"})
    with ThreadPoolExecutor(1) as pool:
        parked = pool.submit(server.post, {"command": "BQPOP jobs"})
        wait_until(lambda: stat_of(server, "waiters") == 1)
        server.signal(number)
        assert parked.result()[0] == 503
    assert server.wait() == 0
    assert server.log.endswith("stopped, everything is on disk\n")
    server.start()
    assert "WARNING" not in server.log
    assert server.post({"command": "GET k"}) == (200, {"value": "v"})


def test_clients_that_reset_while_they_are_answered_and_sigpipe_harm_nobody(server: Server) -> None:
    """H2: what is written to a connection that is gone raises SIGPIPE."""
    server.post({"command": "SET", "key": "k", "value": "x" * 1_000_000})
    server.stop()
    server.start()  # what it logs from here on is not about a slow disk
    for _ in range(5):
        with socket.create_connection((server.host, server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(request("GET k") * 10)
            client.recv(1000)
    server.signal(signal.SIGPIPE)
    assert server.post({"command": "PING"}) == (200, {"value": "PONG"})
    wait_until(lambda: stat_of(server, "connections") == 1)
    assert len(server.log.splitlines()) == 1


def test_while_it_is_stopped_time_goes_on_and_no_wake_up_is_lost(server: Server) -> None:
    """D6: as with SIGSTOP in a shell, or a machine that is paused for a moment."""
    with ThreadPoolExecutor(3) as pool:
        timing_out = pool.submit(server.post, {"command": "BQPOP nothing 0.5"})
        waiting = pool.submit(server.post, {"command": "BQPOP jobs"})
        wait_until(lambda: stat_of(server, "commands") == 2)
        server.post({"command": "SET k v PX 500"})
        due_s = time.monotonic() + 0.5
        server.signal(signal.SIGSTOP)
        wait_until(lambda: state_of(server.pid) == "T")
        pushing = pool.submit(server.post, {"command": "QPUSH jobs a"})
        wait_until(lambda: time.monotonic() > due_s)
        assert not pushing.done()
        server.signal(signal.SIGCONT)
        assert server.post({"command": "GET k"})[0] == 404
        assert timing_out.result() == (200, {"value": None})
        assert waiting.result() == (200, {"value": "a"})
        assert pushing.result() == (200, None)


# A defect

NO_MEMORY = """
from engine.store.state import State

def apply(self, op):
    raise MemoryError("planted")

State.apply = apply
"""


def test_a_defect_in_the_actor_is_reported_and_ends_the_process_whatever_clients_do(tmp_path: Path) -> None:
    """B14, F13: nobody is answered, and the traceback is written before anything can hold the exit up."""
    with Server(tmp_path / "data", under=beginning_with(NO_MEMORY, tmp_path)) as server:
        with socket.create_connection((server.host, server.port)) as parked:
            parked.sendall(request("BQPOP jobs"))
            wait_until(lambda: stat_of(server, "waiters") == 1)
            with pytest.raises(httpx.TransportError):
                server.post({"command": "QPUSH jobs a"})
            assert server.wait() == 1
            assert parked.recv(1000) == b""
        assert "stopped by a defect" in server.log
        assert "MemoryError: planted" in server.log
        server.under = ()
        server.start()
        assert server.post({"command": "EXISTS jobs"}) == (200, {"value": 0})


# Its child


def test_the_process_of_a_checkpoint_holds_neither_directory_nor_port_when_the_server_is_killed(
    server: Server, tmp_path: Path
) -> None:
    """H3, C3: another server starts at once in the same place, and what was left behind ends by itself.

    Where memory is short, the kernel ends the child before the server.
    """
    server.stop()
    server.under = stopping_in_a_checkpoint(tmp_path)
    server.start()
    assert server.post({"command": "SET k v"})[0] == 200
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{server.url}/checkpoint", timeout=60)
        wait_until(lambda: list(server.data.glob("*.snapshot.*.tmp")))
        child = child_of(server)
        assert child is not None
        wait_until(lambda: state_of(child) == "T")
        assert (oom_score_adj_of(child), oom_score_adj_of(server.pid)) == (1000, oom_score_adj_of(os.getpid()))
        server.kill()
        with pytest.raises(httpx.TransportError):
            asked.result()
    assert list(server.data.glob("*.snapshot.*.tmp"))
    try:
        with Server(server.data, "--bind", f"127.0.0.1:{server.port}") as next_server:
            assert next_server.port == server.port
            assert stat_of(next_server, "keys") == 1
            os.kill(child, signal.SIGCONT)
            wait_until(lambda: state_of(child) == "Z")
            assert sorted(file.name for file in server.data.iterdir() if "snapshot" in file.name) == []
            assert httpx.post(f"{next_server.url}/checkpoint", timeout=60).status_code == 200
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    server.start()
    assert stat_of(server, "keys") == 1


# Starting


REPLAYS_LATER = """
import time
from pathlib import Path
from engine.embedded import recovery

recover = recovery.recover

def recover_later(*arguments, **options):
    while not Path({go!r}).exists():
        time.sleep(0.01)
    return recover(*arguments, **options)

recovery.recover = recover_later
"""


def test_nobody_is_answered_before_everything_is_replayed(server: Server, tmp_path: Path) -> None:
    """H4: clients may connect meanwhile, and wait."""
    server.post({"command": "SET k v"})
    server.stop()
    go = tmp_path / "go"
    slow = beginning_with(REPLAYS_LATER.format(go=str(go)), tmp_path)
    with closing(Port()) as port:
        replaying = Server(server.data, "--bind", f"127.0.0.1:{port.number}", under=slow)
        replaying.launch()
        try:
            wait_until(lambda: can_connect(port.number))
            with socket.create_connection(("127.0.0.1", port.number), 0.5) as client:
                client.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n" + request("GET k"))
                with pytest.raises(TimeoutError):
                    client.recv(1)
                assert replaying.log == ""
                go.touch()
                client.settimeout(WITHIN_S)
                answers = b""
                while b'{"value": "v"}' not in answers:
                    answers += receive(client)
            assert answers.startswith(b"HTTP/1.1 200 ")
            assert b'{"status": "ready"' in answers
        finally:
            replaying.kill()


def test_memory_at_the_start_is_bounded_by_what_lives_and_not_by_what_is_read(tmp_path: Path) -> None:
    """A16: a snapshot of 40 values as long as values may be, and 40 MiB in segments that write over one of them."""
    value = b"x" * Limits().value_bytes_max
    count = 40

    def write(log: Log, keys: Iterator[int]) -> None:
        for number in keys:
            append(log, [(ops.PUT, b"%d" % number, value, None)])

    with Server(tmp_path / "empty", under=EXECUTED) as server:
        empty_kib = status_of(server.pid, "VmHWM")
    directory = DiskDirectory(tmp_path / "data")
    _, log = recover(directory, Limits(), wall_ms=0, segment_bytes_max=2 * MIB)
    write(log, iter(range(count)))
    log.seal()
    plan = log.plan_fold()
    assert plan is not None
    log.install(plan, fold(DiskDirectory(tmp_path / "data", beside=True), plan))
    log.remove_folded()
    write(log, iter([0] * count))
    log.close()
    assert sum(file.stat().st_size for file in (tmp_path / "data").glob("*.log")) > count * len(value)
    with Server(tmp_path / "data", under=EXECUTED) as server:
        assert stat_of(server, "keys") == count
        used_kib = status_of(server.pid, "VmHWM") - empty_kib
    assert used_kib < (count * len(value) + 24 * MIB) // 1024


# For long

CONNECTIONS = 10
WAITERS = 20
PARTS = 20
TURN = (
    "SET k{0} v PX 50|SET s{0} v|GET s{0}|TTL k{0}|QPUSH q{0} a b|"
    "QPOP q{0}|BQPOP q{0}|BQPOP q{0} 0|DELETE s{0} q{0}|PING"
)
"""Ten commands that leave nothing behind."""


def work(server: Server, turns: list[str]) -> None:
    """Sends 100 commands on a connection of its own, all at once, and reads the answers."""
    commands = "|".join(TURN.format(turn) for turn in turns).split("|")
    with socket.create_connection((server.host, server.port)) as client:
        client.sendall(b"".join(map(request, commands)))
        answers = b""
        while answers.count(b"HTTP/1.1 ") < len(commands) or not answers.endswith(b'{"value": "PONG"}'):
            answers += receive(client)


def wait_and_leave(server: Server) -> None:
    """Some wait; one push serves the oldest, the others leave without a word."""
    with ExitStack() as clients:
        for _ in range(WAITERS):
            client = clients.enter_context(socket.create_connection((server.host, server.port)))
            client.sendall(request("BQPOP jobs"))
        wait_until(lambda: stat_of(server, "waiters") == WAITERS)
        server.post({"command": "QPUSH jobs a"})
        wait_until(lambda: stat_of(server, "waiters") == WAITERS - 1)
    server.post({"command": "DELETE jobs"})


def soak(server: Server, part: int) -> None:
    """1,000 commands on ten connections, clients that come and go, and a checkpoint beside it all."""
    with ThreadPoolExecutor(CONNECTIONS + 1) as pool:
        folding = pool.submit(httpx.post, f"{server.url}/checkpoint", timeout=60)
        working = [
            pool.submit(work, server, [f"{part}-{number}-{turn}" for turn in range(10)])
            for number in range(CONNECTIONS)
        ]
        wait_and_leave(server)
        for done in working:
            done.result()
        assert folding.result().status_code == 200


def settled(server: Server) -> dict[str, int]:
    """What the server holds when everybody has left, once that is so."""
    wait_until(
        lambda: (stat_of(server, "connections"), stat_of(server, "keys"), stat_of(server, "waiters")) == (1, 0, 0)
    )
    return {
        "descriptors": len(list(Path(f"/proc/{server.pid}/fd").iterdir())),
        "tasks": min(stat_of(server, "tasks") for _ in range(10)),  # those of the request before may just be ending
        "queues": stat_of(server, "queues"),
        "files": len(list(server.data.iterdir())),
    }


@pytest.mark.costly("twenty thousand requests to a process")
def test_twenty_thousand_requests_and_twenty_checkpoints_leave_nothing_behind(executed: Server) -> None:
    """H6, E10: a leak of 250 bytes a request would be seen."""
    soak(executed, 0)
    soak(executed, 1)
    before, before_kib = settled(executed), status_of(executed.pid, "VmRSS")
    for part in range(2, PARTS):
        soak(executed, part)
    wait_until(lambda: all(number <= before[name] for name, number in settled(executed).items()))
    assert stat_of(executed, "checkpoints") == PARTS
    assert stat_of(executed, "commands") > 20_000
    assert status_of(executed.pid, "VmRSS") - before_kib < 4 * 1024


# Python at its strictest

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\S* (INFO|WARNING a commit took) ")


def test_in_development_mode_with_warnings_as_errors_there_is_nothing_to_complain_about(tmp_path: Path) -> None:
    """H7: load, clients that wait, leave and reset, a checkpoint and a clean stop."""
    strict = ("env", "PYTHONDEVMODE=1", "PYTHONWARNINGS=error")
    with Server(tmp_path / "data", "--segment-size", "64KiB", under=strict) as server:
        soak(server, 0)
        with socket.create_connection((server.host, server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(request("BQPOP jobs"))
            wait_until(lambda: stat_of(server, "waiters") == 1)
        wait_until(lambda: stat_of(server, "waiters") == 0)
        server.stop()
        assert [line for line in server.log.splitlines() if not LOG_LINE.match(line)] == []
