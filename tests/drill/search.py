"""Looks for the seed that finds a planted bug."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from tests.drill.bugs import BY_NAME
from tests.drill.plant import Bug, Gone, Kind, planted
from tests.simulate.history import Violation
from tests.simulate.run import Simulation

SEEDS = range(1, 61)


class Escaped(Exception):
    """No seed found the bug; or the one that did complains without it as well."""


@dataclass(frozen=True, slots=True)
class Catch:
    """How a bug was found.

    Attributes:
        seed: that found it.
        seeds: how many were run.
        kind: what was violated.
        hits: how often the planted lines had had their effect by then.
        cpu_s: what it took, in seconds of processor time.
    """

    seed: int
    seeds: int
    kind: Kind
    hits: int
    cpu_s: float


def catch(bug: Bug, seeds: Iterable[int] = SEEDS) -> Catch:
    """Runs seeds with a bug planted until one finds it, and that one once more without the bug.

    Args:
        bug: what to look for.
        seeds: which to run.

    Raises:
        Escaped: no seed found it, or what it found has nothing to do with the bug.
        Gone: the code is no longer what the bug was made for.
    """
    started_s = time.process_time()
    others = []
    for count, seed in enumerate(seeds, 1):
        with planted(bug) as hits:
            violation = violation_of(seed)
        kind = next((kind for kind in bug.kinds if violation.startswith(kind.value)), None)
        if kind is not None and hits.count:
            if violation_of(seed):
                raise Escaped(f"{bug.name}: seed {seed} fails without the bug as well")
            return Catch(seed, count, kind, hits.count, time.process_time() - started_s)
        if violation:
            others.append(f"seed {seed}, {hits.count} hits: {violation}")
    raise Escaped("\n".join([f"{bug.name}: not found; what was found does not count:", *others]))


def look_for(name: str, seeds: Iterable[int]) -> tuple[str, Catch | None, str]:
    """Looks for one bug: its name, how it was found, and else why it was not."""
    try:
        return name, catch(BY_NAME[name], seeds), ""
    except (Escaped, Gone) as error:
        return name, None, str(error)


def violation_of(seed: int) -> str:
    """What one run violates, or nothing."""
    try:
        Simulation(seed).run()
    except Violation as violation:
        return str(violation)
    return ""
