"""B11, B12: a real process under load from 20 connections, killed with SIGKILL and started again; see kill.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.crash.kill import Campaign, Totals

KILLS = 50
SEEDS = (1, 2)
ACKNOWLEDGED_PER_KILL_MIN = 20
"""Fewer, and the load was too small to mean anything."""


def test_no_kill_loses_what_was_answered_nor_delivers_anything_twice(tmp_path: Path) -> None:
    """B11, B12, I1 to I6."""

    def run(seed: int) -> Totals:
        return Campaign(tmp_path / str(seed), seed).run(KILLS // len(SEEDS))

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        for totals in pool.map(run, SEEDS):
            assert totals.acknowledged > ACKNOWLEDGED_PER_KILL_MIN * totals.kills.total(), totals
            assert totals.unknown, totals
            assert totals.delivered, totals
            assert totals.batches > totals.kills.total(), totals
