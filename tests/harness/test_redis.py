"""The Redis of the tests: what would leave processes behind, or make tests meet each other."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from engine.redis.slots import slot_of
from tests.harness.process import ROOT
from tests.harness.redis import RedisCluster, RedisError, RedisNode, RedisPair, Wire
from tests.harness.waiting import wait_until

STARTER = """
import sys, time
from pathlib import Path
from tests.harness.redis import RedisNode
node = RedisNode(Path(sys.argv[1]))
node.start()
print(node.port, flush=True)
time.sleep(600)
"""


def test_a_redis_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "node")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline())
        with Wire(port) as wire:
            assert wire.do("PING") == b"PONG"
            starter.send_signal(signal.SIGKILL)
            assert wire._file.read() == b"", "the connection ends with the process"


def test_a_port_is_given_to_nobody_else_while_its_node_is_dead(tmp_path: Path) -> None:
    with RedisNode(tmp_path / "node") as node:
        node.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", node.port))
        node.start()
        assert node.do("PING") == b"PONG"


def test_a_paused_redis_takes_connections_and_answers_when_it_goes_on(tmp_path: Path) -> None:
    with RedisNode(tmp_path / "node") as node:
        node.do("SET", "k", b"\x00\xff")
        node.pause()
        with pytest.raises(TimeoutError), Wire(node.port, timeout_s=0.05) as wire:
            wire.do("PING")
        node.resume()
        assert node.do("GET", "k") == b"\x00\xff"
        node.pause()


def test_a_pair_replicates_behind_its_password(tmp_path: Path) -> None:
    with RedisPair(tmp_path, password="s3cret") as pair:
        assert pair.master.do_many([["SET", "k", "v"], ["WAIT", 1, 0]]) == [b"OK", 1]
        assert pair.replica.do("GET", "k") == b"v"
        with Wire(pair.master.port) as stranger, pytest.raises(RedisError, match="NOAUTH"):
            stranger.do("GET", "k")


def test_a_cluster_moves_slots_and_lives_through_the_death_of_a_master(tmp_path: Path) -> None:
    with RedisCluster(tmp_path, password="s3cret") as cluster:
        source, target, _ = cluster.masters
        key = cluster.key_on(source)
        for number in range(4):
            cluster.do("SET", b"{%b}%d" % (key, number), "v")
        migration = cluster.migrate_slot(slot_of(key), target, half=True)
        assert len(migration.keys()) == 2
        with pytest.raises(RedisError, match="ASK"):
            source.do("GET", b"{%b}none" % key)
        migration.finish()
        cluster.wait_until_healthy()
        assert cluster.master_of(key) is target
        assert cluster.do("EXISTS", b"{%b}0" % key, *(b"{%b}%d" % (key, number) for number in range(1, 4))) == 4
        replica = cluster.replica_of(target)
        target.do("WAIT", 1, 0)
        assert cluster.fail_over(target) is replica
        cluster.wait_until_healthy()
        assert cluster.master_of(key) is replica
        cluster.revive()
        assert cluster.replica_of(replica) is target
        cluster.flush()
        wait_until(lambda: target.do("DBSIZE") == 0, lambda: "the replica was not flushed")
