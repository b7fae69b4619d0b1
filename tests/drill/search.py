"""Looks for what finds a planted bug: a seed of the simulator, or the test that the bug names."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tests.drill.bugs import BY_NAME
from tests.drill.plant import Bug, Gone, planted
from tests.harness.process import ROOT
from tests.simulate.history import Violation
from tests.simulate.run import Simulation

SEEDS = range(1, 101)


class Escaped(Exception):
    """Nothing found the bug; or what did complains without it as well."""


@dataclass(frozen=True, slots=True)
class Catch:
    """How a bug was found.

    Attributes:
        by: what was violated, or the name of the test.
        seeds: how many seeds were run, the last of which found it; 0 for a test.
        seconds: what it took.
    """

    by: str
    seeds: int
    seconds: float


def look_for(name: str, seeds: Iterable[int]) -> tuple[str, Catch | None, str]:
    """Looks for one bug: its name, how it was found, and else why it was not."""
    try:
        return name, catch(BY_NAME[name], seeds), ""
    except (Escaped, Gone) as error:
        return name, None, str(error)


def catch(bug: Bug, seeds: Iterable[int] = SEEDS) -> Catch:
    """Finds a bug.

    Args:
        bug: what to look for.
        seeds: which to run.

    Raises:
        Escaped: nothing found it, or what was found has nothing to do with it.
        Gone: the code is no longer what the bug was made for.
    """
    return catch_by_test(bug) if bug.test else catch_by_seed(bug, seeds)


def catch_by_seed(bug: Bug, seeds: Iterable[int]) -> Catch:
    """Runs seeds with a bug planted until one finds it, and that one once more without the bug."""
    started_s = time.perf_counter()
    others = []
    for count, seed in enumerate(seeds, 1):
        with planted(bug) as hits:
            violation = violation_of(seed)
        kind = next((kind for kind in bug.kinds if violation.startswith(kind.value)), None)
        if kind is not None and hits.count:
            if violation_of(seed):
                raise Escaped(f"{bug.name}: seed {seed} fails without the bug as well")
            return Catch(kind.value, count, time.perf_counter() - started_s)
        if violation:
            others.append(f"seed {seed}, {hits.count} hits: {violation}")
    raise Escaped("\n".join([f"{bug.name}: not found; what was found does not count:", *others]))


def catch_by_test(bug: Bug) -> Catch:
    """Runs the bug's test with the bug planted, in a process of its own; that it passes without is for the suite."""
    started_s = time.perf_counter()
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.drill.plugin", "--plant", bug.name, bug.test]
    done = subprocess.run([sys.executable, "-m", "pytest", *options], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 1:
        raise Escaped(f"{bug.name}: the test ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return Catch(bug.test.rpartition("::")[2], 0, time.perf_counter() - started_s)


def violation_of(seed: int) -> str:
    """What one run violates, or nothing."""
    try:
        Simulation(seed).run()
    except Violation as violation:
        return str(violation)
    return ""
