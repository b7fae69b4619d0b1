"""The timer of the exit, in a process of its own, which it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.harness.process import ROOT

PROGRAM = """
import trio
from api.server.stop import Stop
from tests.harness.fake_engine import FakeEngine

async def main():
    stop = Stop(late_code=7)
    {steps}
    await trio.sleep_forever()

trio.run(main)
"""

RUNNING = "stop.engine = FakeEngine()"
ENDED = "stop.engine_ended.set()"
TIMER = "stop.arm(0.01, 7)"


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ((TIMER,), 0),
        ((RUNNING, TIMER), 7),
        ((RUNNING, ENDED, TIMER), 0),
        ((RUNNING, TIMER, "stop.arm(60, 8)"), 7),
        ((RUNNING, "stop.arm(60, 8)", TIMER), 7),
    ],
    ids=["nothing runs", "an engine runs", "it has ended", "a later timer", "an earlier timer"],
)
def test_when_time_is_up_the_code_says_whether_an_engine_was_still_running(steps: tuple[str, ...], code: int) -> None:
    """H1"""
    program = PROGRAM.format(steps="; ".join(steps))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, "something held the exit up for 0 s; ending now\n")


def test_what_can_be_interrupted_is_interrupted_by_a_wish_before_it_too() -> None:
    program = PROGRAM.format(steps="stop.wish()\n    with stop.interrupting(): await trio.sleep_forever()")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.endswith("api.server.stop.Interrupted\n")
