"""B11: a real process under load from 20 connections, killed with SIGKILL at random moments and started again."""

from __future__ import annotations

import random
from pathlib import Path

import trio

from tests.harness.load import Books, run_clients
from tests.harness.process import Server

KILLS = 20


def empty_queue(server: Server, name: str) -> list[str]:
    """Takes everything out of a queue, first to last."""
    values = []
    while (answer := server.post({"command": f"BQPOP {name} 0"})[1])["value"] is not None:
        values.append(answer["value"])
    return values


def check(server: Server, books: Books) -> None:
    for name in books.keys:
        status, answer = server.post({"command": f"GET {name}"})
        assert status in (200, 404)
        books.check_key(name, answer.get("value"))
    for name in books.queues:
        books.check_queue(name, empty_queue(server, name))


def test_no_kill_loses_what_was_answered_nor_delivers_anything_twice(tmp_path: Path) -> None:
    books = Books()
    moments = random.Random(1)
    with Server(tmp_path / "data") as server:
        for round_ in range(KILLS):
            trio.run(run_clients, (server.host, server.port), books, round_, server.kill, moments.uniform(0.05, 0.8))
            server.start()
            check(server, books)
        assert books.acknowledged > 20 * KILLS, "the load was too small to mean anything"
