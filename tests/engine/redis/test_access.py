"""What a front finds when it comes to Redis: doors that are shut, other kinds of Redis, masters that have changed."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from engine.redis.errors import ClusterError
from engine.replies import Error, Failure, Ok, Value
from tests.conformance.cases import OK
from tests.conformance.table import CASES
from tests.harness.front import Front, start_front, unavailable
from tests.harness.process import ROOT
from tests.harness.redis import RedisNode, RedisPair
from tests.harness.redis_node import Port
from tests.harness.waiting import until

PASSWORD = "s3cret-word"

NO_FAULTS = (Error.KEY_NOT_FOUND, Error.KEY_ALREADY_EXISTS, Error.QUEUE_IS_EMPTY, Error.WRONG_TYPE)
"""What a command may be refused with that Redis has done all the same."""


async def complaint_of(url: str) -> str:
    """Why a front does not start."""
    with pytest.raises(BaseExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            await start_front(nursery, url)
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        [error] = error.exceptions
    assert isinstance(error, ClusterError), error
    return str(error)


@pytest.fixture(scope="module")
def running_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    with RedisNode(tmp_path_factory.mktemp("redis"), password=PASSWORD) as node:
        yield node


@pytest.fixture
def node(running_node: RedisNode) -> RedisNode:
    """A Redis without cluster mode, behind a password."""
    running_node.do("FLUSHALL")
    return running_node


# Nobody who lets us in


@pytest.mark.parametrize("credentials", ["", f":{PASSWORD}x@", f"nobody:{PASSWORD}@", ":%2520@"])
async def test_who_is_not_let_in_is_told_by_whom_and_no_password(node: RedisNode, credentials: str) -> None:
    message = await complaint_of(f"redis://{credentials}127.0.0.1:{node.port}")
    assert message == f"127.0.0.1:{node.port} refuses the name or the password"


async def test_a_password_that_changes_makes_keys_unavailable_until_it_is_right_again(
    nursery: trio.Nursery, node: RedisNode
) -> None:
    front = await start_front(nursery, node.url)
    (job,) = await front.park("BQPOP q")
    node.do_many([("CONFIG", "SET", "requirepass", "other"), ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")])
    refused = await front.until_unavailable("SET k v")
    await until(lambda: "refuses the name or the password" in str(front.engine.readiness()))
    refused = await front.until_unavailable("SET k v")
    assert refused.detail == f"127.0.0.1:{node.port} refuses the name or the password"
    node.password = "other"
    node.do("CONFIG", "SET", "requirepass", PASSWORD)
    node.password = PASSWORD
    assert await front.eventually("SET k v") == OK
    assert await front.do("QPUSH q a") == Ok(length=1)
    assert await job.wait() == Value(b"a")
    front.close()


# Users who may not do everything


@asynccontextmanager
async def front_of_user(nursery: trio.Nursery, node: RedisNode, *rules: str) -> AsyncIterator[Front]:
    """A front that comes as a user with these rules of ACL SETUSER on top of being allowed everything."""
    node.do("ACL", "SETUSER", "front", "reset", "on", f">{PASSWORD}", "~*", "&*", "+@all", *rules)
    front = await start_front(nursery, f"redis://front:{PASSWORD}@127.0.0.1:{node.port}")
    yield front
    front.close()
    node.do("ACL", "DELUSER", "front")


async def test_a_user_may_be_denied_what_only_tells_and_cleans_up(nursery: trio.Nursery, node: RedisNode) -> None:
    async with front_of_user(nursery, node, "-config", "-client|kill", "-client|setname") as front:
        for _ in range(2):
            assert await front.eventually("QPUSH q a b") == Ok(length=2)
            assert await front.do("QPOP q") == Value(b"b")
            assert await front.do("BQPOP q") == Value(b"a")
            (job,) = await front.park("BQPOP q")
            await front.do("QPUSH q c")
            assert await job.wait() == Value(b"c")
            assert front.engine.readiness() == {
                "engine": "redis",
                "masters": 1,
                "min_replicas": 0,
                "appendonly": "unknown",
                "appendfsync": "unknown",
                "maxmemory_policy": "unknown",
            }
            node.do("CLIENT", "KILL", "USER", "front")
            await front.until_unavailable("GET k")


def documented_rules() -> list[str]:
    """The rules that docs/cluster.md gives a user of fronts."""
    text = (ROOT / "docs/cluster.md").read_text()
    _, _, rules = text.partition("ACL SETUSER holdfast on >PASSWORD ")
    return rules.partition("```")[0].split()


async def test_the_rights_that_are_documented_are_enough_for_every_command_also_where_a_unit_is_undone(
    nursery: trio.Nursery, node: RedisNode
) -> None:
    async with front_of_user(nursery, node, "resetkeys", *documented_rules()) as front:
        for line in CASES:
            at_once = f"{line} 0" if line == "BQPOP k" else line
            for making in ((), ("SET k old",), ("SET k old EX 1000",), ("QPUSH k first mid last",)):
                for made in making:
                    await front.do(made)
                assert (await front.do_many(at_once, "SET k v NX", "SET k v NX", atomic=True)) is not None
                replies = [await front.do(at_once)]
                unit = await front.do_many(at_once, "EXISTS k", atomic=True)
                replies += unit if isinstance(unit, list) else [unit.failure]
                for reply in replies:
                    assert not isinstance(reply, Failure) or reply.error in NO_FAULTS, (line, making, reply)
                await front.do("DELETE k")
        (job,) = await front.park("BQPOP q")
        await front.do("QPUSH q a")
        assert await job.wait() == Value(b"a")


async def test_a_user_who_is_denied_scripts_can_do_what_takes_none(nursery: trio.Nursery, node: RedisNode) -> None:
    async with front_of_user(nursery, node, "-evalsha", "-eval") as front:
        assert await front.do("SET k v") == OK
        assert await front.do("GET k") == Value(b"v")
        denied = Failure(Error.UNAVAILABLE, "redis does not permit this to the server's user")
        for line in ("QPUSH q a", "QPOP q", "BQPOP q", "QLEN q"):
            assert await front.do(line) == denied
        refused = await front.do_many("SET k w", atomic=True)
        assert unavailable(refused)


async def test_a_user_who_is_denied_some_keys_gets_the_others(nursery: trio.Nursery, node: RedisNode) -> None:
    async with front_of_user(nursery, node, "resetkeys", "~own*", "~*holdfast:*") as front:
        assert await front.do("SET own1 v") == OK
        assert await front.do("QPUSH own2 a") == Ok(length=1)
        assert await front.do("QPOP own2") == Value(b"a")
        for line in ("SET k v", "QPUSH q a", "BQPOP q", "DELETE k"):
            assert unavailable(await front.do(line)), line


# Other kinds of Redis


async def test_one_redis_without_cluster_mode_takes_units_over_any_keys(nursery: trio.Nursery, node: RedisNode) -> None:
    front = await start_front(nursery, node.url)
    assert await front.do_many("SET a 1", "SET b 2", "QPUSH c 3", "QPOP c", atomic=True) == [
        *(OK, OK, Ok(length=1), Value(b"3")),
    ]
    assert await front.do("DELETE a b c") is not None
    readiness = front.engine.readiness()
    assert isinstance(readiness, dict)
    assert readiness["engine"] == "redis"
    assert readiness["appendonly"] == "no"
    front.close()


async def test_when_the_master_of_a_pair_dies_the_replica_that_is_made_master_is_found(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    with RedisPair(tmp_path) as pair:
        front = await start_front(nursery, f"{pair.url},127.0.0.1:{pair.replica.port}", min_replicas=1)
        assert await front.do("QPUSH q a b") == Ok(length=2)
        (job,) = await front.park("BQPOP r")
        pair.master.kill()
        await front.until_unavailable("QPOP q")
        pair.replica.do("REPLICAOF", "NO", "ONE")
        assert await front.eventually("GET k") == Failure(Error.KEY_NOT_FOUND)
        assert unavailable(await front.do("QPUSH q c")), "nobody follows it"
        pair.master.launch()
        pair.master.wait_until_answering()
        pair.master.do("REPLICAOF", "127.0.0.1", pair.replica.port)
        assert await front.eventually("QPUSH r x") in (Ok(length=1), Ok(length=2))
        assert await job.wait() == Value(b"x")
        front.close()


async def test_a_master_that_is_made_a_replica_while_it_runs_is_left(nursery: trio.Nursery, tmp_path: Path) -> None:
    with RedisPair(tmp_path) as pair:
        front = await start_front(nursery, f"{pair.url},127.0.0.1:{pair.replica.port}")
        assert await front.do("SET k 1") == OK
        (job,) = await front.park("BQPOP r")
        await until(lambda: pair.replica.do("GET", "k") == b"1")
        pair.replica.do("REPLICAOF", "NO", "ONE")
        pair.master.do("REPLICAOF", "127.0.0.1", pair.replica.port)
        assert await front.eventually("SET k 2") == OK
        assert pair.replica.do("GET", "k") == b"2"
        assert await front.eventually("GET k") == Value(b"2")
        assert await front.do("QPUSH r a") == Ok(length=1)
        assert await job.wait() == Value(b"a")
        front.close()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that it has signed itself, and its key."""
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=holdfast -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-out", certificate, "-keyout", key], check=True, capture_output=True)
    return certificate, key


@pytest.fixture
def tls_port(tmp_path: Path, certificate: tuple[Path, Path]) -> Iterator[int]:
    """Where a Redis speaks TLS only."""
    port = Port()
    options = ("--tls-port", str(port.number), "--tls-auth-clients", "no", "--tls-cert-file", str(certificate[0]))
    with RedisNode(tmp_path / "redis", *options, "--tls-key-file", str(certificate[1])):
        yield port.number
    port.close()


async def test_redis_is_spoken_to_by_tls_and_must_be_who_it_says(
    nursery: trio.Nursery, tls_port: int, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("engine.redis.keeper.START_WITHIN_S", 0.5)
        message = await complaint_of(f"rediss://127.0.0.1:{tls_port}")
        assert "does not answer" in await complaint_of(f"redis://127.0.0.1:{tls_port}")
    assert "certificate verify failed" in message
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    front = await start_front(nursery, f"rediss://127.0.0.1:{tls_port}")
    (job,) = await front.park("BQPOP q")
    assert await front.do("QPUSH q a b") == Ok(length=2)
    assert await job.wait() == Value(b"a")
    front.close()
