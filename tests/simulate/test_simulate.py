"""The simulator, over its first seeds; `python -m tests.simulate` runs more, and shows one in full."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness.effort import many
from tests.harness.process import ROOT
from tests.simulate import __main__ as command
from tests.simulate.history import Violation
from tests.simulate.result import Result
from tests.simulate.run import Simulation

SEEDS = many(200)
BATCH = 10


def traced(seed: int, hash_seed: str) -> bytes:
    """What `--trace` prints, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulate", "--seed", str(seed), "--trace"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        stdout=subprocess.PIPE,
        check=True,
    ).stdout


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_whatever_happens_the_clients_see_what_was_promised(first: int) -> None:
    """I1 to I7; A1, A2, A3, A7, A10, A14, A15, B1, B2, B3, B9, B11, B12, B13, C1, C4, D2, D3, D4, E4, E5, E7, E8"""
    total = Result(seeds=0)
    for seed in range(first, first + BATCH):
        total.add(Simulation(seed).run())
    assert total.seeds == BATCH
    # Seeds in which little happens would prove little.
    assert total.operations > 60 * BATCH
    assert total.pipelines > 2 * BATCH
    assert total.units > 2 * BATCH
    assert total.refused_units > BATCH // 5
    assert total.kills > BATCH
    assert total.power_cuts > BATCH
    assert total.failures > BATCH // 5
    assert total.stops > BATCH // 3
    assert total.faults > BATCH // 2
    assert total.flips > BATCH // 3
    assert total.checkpoints > BATCH


def test_a_seed_is_a_whole_run_byte_for_byte() -> None:
    once, again = traced(1, "1"), traced(1, "2")
    assert once.count(b"\n") > 500
    assert once == again


def test_a_range_of_seeds_is_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run_many(range(2), 1) == 0
    assert capsys.readouterr().out.startswith("2 seeds: ")


def test_a_violation_is_shown_with_the_line_that_shows_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(_simulation: Simulation) -> Result:
        raise Violation("the sky fell, with xxxxxxxxxxxxxxxxxxxxxxxxx in it")

    monkeypatch.setattr(Simulation, "run", run)
    assert command.run_one(7, trace=False) == 1
    shown = "seed 7: the sky fell, with x... in it\n    python -m tests.simulate --seed 7 --trace\n"
    assert capsys.readouterr().out == shown
    assert command.run_many(range(7, 9), 1) == 1
    assert capsys.readouterr().out.endswith("failed: 7, 8\n")


def test_an_error_of_the_engine_is_a_violation(monkeypatch: pytest.MonkeyPatch) -> None:
    """F13"""

    def fall(*_args: object) -> None:
        raise ZeroDivisionError("in the actor")

    monkeypatch.setattr("engine.embedded.actor.Actor._answer", fall)
    with pytest.raises(Violation, match=r"(?s)Traceback.*in the actor"):
        Simulation(0).run()
