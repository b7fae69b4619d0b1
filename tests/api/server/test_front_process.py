"""The real process as a front of Redis: starting, what it says, and its end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from api.server.stop import SAME_SIGNAL_S
from tests.harness.process import ROOT, Server, beginning_with
from tests.harness.redis import RedisCluster, RedisNode
from tests.harness.waiting import WITHIN_S, wait_until

PASSWORD = "secret"


UNAVAILABLE = (503, {"error": "unavailable", "detail": "shutting down"})


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """One for all tests, each of which leaves it as it was."""
    with RedisCluster(tmp_path_factory.mktemp("cluster"), password=PASSWORD, node_timeout_ms=60_000) as cluster:
        yield cluster


@pytest.fixture(params=["door", "hypercorn"])
def front(request: pytest.FixtureRequest, tmp_path: Path, cluster: RedisCluster) -> Iterator[Server]:
    cluster.flush()
    options = ("--no-door",) if request.param == "hypercorn" else ()
    with Server(tmp_path / "front", *options, engine=cluster.url) as server:
        yield server
        assert PASSWORD not in server.log


def stat_of(server: Server, name: str) -> int:
    number: int = server.get("/stats")[1][name]
    return number


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Takes connections, as the system does, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def nobody() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"redis://:{PASSWORD}@127.0.0.1:{listener.getsockname()[1]}"


def beside(front: Server, name: str, engine: str | None = None) -> Server:
    """Another front."""
    return Server(front.data.with_name(name), engine=engine or front.engine)


IN_A_HURRY = """
from engine.redis import keeper

assert keeper.START_WITHIN_S == 10
keeper.START_WITHIN_S = 1
"""
"""Planted where a front gives up in any case: with it sooner."""


def last_line(server: Server) -> str:
    return server.log.splitlines()[-1]


def test_where_no_redis_is_a_front_exits_1_and_says_so_without_the_password(tmp_path: Path) -> None:
    front = Server(tmp_path / "front", engine=nobody(), under=beginning_with(IN_A_HURRY, tmp_path))
    front.launch()
    assert front.wait() == 1
    trying, given_up = front.log.splitlines()
    assert "WARNING redis: 127.0.0.1:" in trying
    assert "CRITICAL redis: 127.0.0.1:" in given_up
    assert PASSWORD not in front.log
    assert not front.data.exists()


def test_where_somebody_is_silent_a_front_exits_1_too(tmp_path: Path, silent: socket.socket) -> None:
    url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
    front = Server(tmp_path / "front", engine=url, under=beginning_with(IN_A_HURRY, tmp_path))
    front.launch()
    assert front.wait() == 1
    assert "Traceback" not in front.log


def test_a_front_that_is_connecting_stops_at_once(tmp_path: Path, silent: socket.socket) -> None:
    """H1"""
    front = Server(tmp_path / "front", engine=f"redis://127.0.0.1:{silent.getsockname()[1]}")
    front.launch()
    with silent.accept()[0]:
        front.signal(signal.SIGTERM)
        assert front.wait() == 0
    assert last_line(front).endswith("stopped while connecting; nothing was changed")


def test_a_taken_port_exits_1_before_redis_is_asked(tmp_path: Path, silent: socket.socket) -> None:
    """H4"""
    host, port = silent.getsockname()
    front = Server(tmp_path / "front", "--bind", f"{host}:{port}", engine=f"redis://{host}:{port}")
    front.launch()
    assert front.wait() == 1
    assert "Address already in use" in last_line(front)
    silent.setblocking(False)
    with pytest.raises(BlockingIOError):
        silent.accept()


def test_without_its_library_a_front_exits_1_and_says_how_to_install_it(tmp_path: Path) -> None:
    """A package of that name that cannot be imported stands for one that is not there."""
    hidden = tmp_path / "hidden" / "coredis.py"
    hidden.parent.mkdir()
    hidden.write_text("raise ModuleNotFoundError(\"No module named 'coredis'\", name='coredis')")
    front = Server(tmp_path / "front", engine=nobody(), under=("env", f"PYTHONPATH={hidden.parent}"))
    front.launch()
    assert front.wait() == 1
    assert "run pip install '.[cluster]' in the source directory of Holdfast" in last_line(front)
    assert "pip install '.[cluster]'" in last_line(front)
    assert "Traceback" not in front.log


# On a cluster


def test_the_same_commands_in_both_dialects_and_in_batches(front: Server) -> None:
    assert front.post({"command": "SET hello world"}) == (200, None)
    assert front.post({"command": "GET", "key": "hello"}) == (200, {"success": True, "key": "hello", "value": "world"})
    assert front.post({"command": "SET hello again NX"})[0] == 409
    assert front.post({"command": "QPUSH jobs a b c"}) == (200, None)
    assert front.post({"command": "QPOP jobs"}) == (200, {"value": "c"})
    assert front.post({"command": "BQPOP jobs"}) == (200, {"value": "a"})
    assert front.post({"command": "GET jobs"})[0] == 409
    several = [{"command": f"SET key{number} {number}"} for number in range(100)] + [{"command": "GET key7"}]
    assert front.post(several, "/pipeline") == (200, [{}] * 100 + [{"value": "7"}])


def test_a_unit_is_for_keys_of_one_slot(front: Server) -> None:
    together = [{"command": "SET {user1}:name Ann"}, {"command": "GET {user1}:name"}]
    assert front.post(together, "/multi") == (200, [{}, {"value": "Ann"}])
    status, refused = front.post([*together, {"command": "SET user2 Bob"}], "/multi")
    assert (status, refused["error"], refused["index"]) == (400, "invalid command", 2)
    assert "{user1}" in refused["detail"]


def test_the_start_line_and_readiness_say_where_the_keys_are(front: Server) -> None:
    ready = front.get("/readyz")[1]
    assert (ready["status"], ready["engine"], ready["masters"], ready["min_replicas"]) == (
        "ready",
        "redis cluster",
        3,
        0,
    )
    line = next(line for line in front.log.splitlines() if "listening on" in line)
    where = str(front.engine).replace(f":{PASSWORD}@", "")
    assert f"listening on {front.url}, keys on {where} (redis cluster, 3 masters" in line
    assert line.endswith("answers wait for no replica, no token")


def test_statistics_are_numbers_and_on_sigusr1_in_the_log(front: Server) -> None:
    members = front.get("/stats")[1]
    assert {"waiters", "commands", "uptime_s", "connections", "tasks"} <= members.keys()
    assert all(isinstance(value, int | float) for value in members.values())
    front.signal(signal.SIGUSR1)
    wait_until(lambda: "SIGUSR1: {" in front.log)


def test_there_is_no_log_to_fold_on_a_front(front: Server) -> None:
    assert front.post(b"", "/checkpoint")[0] == 404
    command = [sys.executable, "-m", "api", "checkpoint", "--bind", f"{front.host}:{front.port}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S)
    assert done.returncode == 1
    assert "has no log to compact" in done.stderr


def test_what_one_front_writes_another_reads_and_who_waits_there_is_served(front: Server) -> None:
    with beside(front, "other") as other, ThreadPoolExecutor(1) as pool:
        assert other.post({"command": "SET shared yes"}) == (200, None)
        assert front.post({"command": "GET shared"}) == (200, {"value": "yes"})
        parked = pool.submit(front.post, {"command": "BQPOP calls"})
        wait_until(lambda: stat_of(front, "waiters") == 1)
        assert other.post({"command": "QPUSH calls x"}) == (200, None)
        assert parked.result() == (200, {"value": "x"})


def test_sigterm_answers_parked_clients_503_takes_nothing_and_exits_0(front: Server) -> None:
    """E8, H1"""
    with ThreadPoolExecutor(8) as pool:
        parked = [pool.submit(front.post, {"command": f"BQPOP parked{number}"}) for number in range(8)]
        wait_until(lambda: stat_of(front, "waiters") == 8)
        front.stop()
        assert [future.result() for future in parked] == [UNAVAILABLE] * 8
    assert last_line(front).endswith("stopped; the data is in Redis")
    front.start()
    assert front.post({"command": "QPUSH parked0 a"}) == (200, None)
    assert front.post({"command": "QLEN parked0"}) == (200, {"value": 1})


@pytest.fixture
def hung(front: Server, cluster: RedisCluster) -> Iterator[Server]:
    """A front with a command in flight whose Redis does not answer any more."""
    front.post({"command": "SET k v"})
    for node in cluster.nodes:
        node.pause()
    try:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(front.post, {"command": "SET k w"})
            wait_until(lambda: stat_of(front, "mailbox") == 1)
            yield front
            if front.is_running:
                front.kill()
    finally:
        cluster.revive()


def test_a_redis_that_hangs_cannot_hold_up_the_exit(hung: Server) -> None:
    """H1"""
    hung.stop()


def test_a_second_signal_exits_now(hung: Server) -> None:
    """H1"""
    hung.signal(signal.SIGTERM)
    wait_until(lambda: "SIGTERM: shutting down" in hung.log)
    time.sleep(SAME_SIGNAL_S + 0.1)
    hung.signal(signal.SIGTERM)
    assert hung.wait() == 128 + signal.SIGTERM


def test_a_wrong_password_exits_1_and_is_not_shown(tmp_path: Path, cluster: RedisCluster) -> None:
    for number, url in enumerate((cluster.url.replace(PASSWORD, "guessed"), cluster.url.replace(f":{PASSWORD}@", ""))):
        front = Server(tmp_path / f"front{number}", engine=url)
        front.launch()
        assert front.wait() == 1
        assert len(front.log.splitlines()) == 1, front.log
        assert "password" in front.log
        assert "guessed" not in front.log


# On one Redis


def test_a_redis_that_is_gone_is_answered_503_and_one_that_is_back_serves_again(tmp_path: Path) -> None:
    with (
        RedisNode(tmp_path / "redis", "--appendonly", "yes") as redis,
        Server(tmp_path / "front", "--token", "t", engine=redis.url) as front,
    ):
        assert "(redis, " in front.log
        assert "appendonly yes" in front.log
        client = httpx.Client(base_url=front.url, headers={"Authorization": "Bearer t"}, timeout=WITHIN_S)
        assert client.post("/", json={"command": "SET k v"}).status_code == 200
        redis.kill()
        wait_until(lambda: client.get("/readyz").status_code == 503)
        refused = client.post("/", json={"command": "GET k"})
        assert (refused.status_code, refused.json()["error"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        redis.start()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.post("/", json={"command": "GET k"}).json() == {"value": "v"}
        assert "Traceback" not in front.log
        client.close()


def test_a_front_whose_redis_is_gone_stops_as_well(tmp_path: Path) -> None:
    """H1"""
    with RedisNode(tmp_path / "redis") as redis, Server(tmp_path / "front", engine=redis.url) as front:
        redis.kill()
        wait_until(lambda: front.get("/readyz")[0] == 503)
        front.stop()


def test_a_write_that_too_few_replicas_would_follow_is_refused_at_once_and_not_done(tmp_path: Path) -> None:
    with (
        RedisNode(tmp_path / "redis") as redis,
        Server(tmp_path / "front", "--min-replicas", "1", engine=redis.url) as front,
    ):
        assert "answers wait for 1 replica, " in front.log
        status, answer = front.get("/readyz")
        assert (status, answer["error"]) == (503, "unavailable")
        assert answer["detail"].endswith("has 0 replicas, and writes need 1")
        assert front.post({"command": "SET k v"}) == (503, answer | {"error": "unavailable"})
        assert front.post({"command": "GET k"})[0] == 404
