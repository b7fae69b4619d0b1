"""B11, B12: a real process under load from 20 connections, killed with SIGKILL and started again; see kill.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.kill import Campaign
from tests.harness.effort import many

KILLS = many(25)
"""In each campaign."""

ACKNOWLEDGED_PER_KILL_MIN = 20
"""Fewer, and the load was too small to mean anything."""


@pytest.mark.costly("25 lives of a process under load, as fast as it goes")
@pytest.mark.parametrize("seed", [1, 2])
def test_no_kill_loses_what_was_answered_nor_delivers_anything_twice(tmp_path: Path, seed: int) -> None:
    """B11, B12, I1 to I6."""
    totals = Campaign(tmp_path / str(seed), seed).run(KILLS)
    assert totals.acknowledged > ACKNOWLEDGED_PER_KILL_MIN * totals.kills.total(), totals
    assert totals.unknown, totals
    assert totals.delivered, totals
    assert totals.batches > totals.kills.total(), totals
