"""How a row is measured: all its targets are started, taken in turn, round after round, and ended.

A target starts what it needs and gives a function that measures once. What cannot be measured says why and disturbs
nobody else.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.bench.peers import NotMeasured
from tests.bench.wrk import Sample

FAILURES = (NotMeasured, AssertionError, OSError, subprocess.SubprocessError, httpx.HTTPError)
"""What starting and measuring a server may come to; anything else is a fault of the benchmark."""

Measure = Callable[[], Sample]


@dataclass(frozen=True)
class Setup:
    """Where a target may write, and how many seconds it measures."""

    directory: Path
    seconds: int


@dataclass(frozen=True)
class Target:
    """A server, or a way to ask it, and how it is started and measured."""

    name: str
    start: Callable[[Setup], AbstractContextManager[Measure]]


@dataclass(frozen=True)
class Row:
    """A question that is put to several targets.

    Args:
        name: for `--only`.
        group: the heading of the table that it is in, together with the rows beside it of the same group.
        title: what sets it apart there.
        targets: who is asked, in this order.
        ours: the target that the others are compared with.
        note: what there is to know about its group.
        rounds_max: where more would only take time.
    """

    name: str
    group: str
    title: str
    targets: Sequence[Target]
    ours: str
    note: str = ""
    rounds_max: int | None = None


@dataclass
class Result:
    """What came of a row: samples by target, one for each round, or why there are none."""

    row: Row
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def measure(row: Row, setup: Setup, rounds: int) -> Result:
    """Starts the targets of a row, measures them in turn, and ends them."""
    result = Result(row)
    running: dict[str, Measure] = {}
    with ExitStack() as stack:
        for number, target in enumerate(row.targets):
            own = Setup(setup.directory / f"{row.name}-{number}", setup.seconds)
            own.directory.mkdir()
            try:
                running[target.name] = stack.enter_context(target.start(own))
            except FAILURES as error:
                result.missing[target.name] = reason(error)
        for _ in range(min(rounds, row.rounds_max or rounds)):
            for name, take in list(running.items()):
                try:
                    result.samples.setdefault(name, []).append(take())
                except FAILURES as error:
                    result.missing[name] = reason(error)
                    result.samples.pop(name, None)
                    del running[name]
    return result


def reason(error: BaseException) -> str:
    """Why something was not measured, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ... ".join((lines[0], lines[-1]) if len(lines) > 1 else lines) or type(error).__name__
