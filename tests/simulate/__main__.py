"""`python -m tests.simulate --seed N` runs one seed; `--seeds A-B --jobs 2` runs many and adds them up."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from multiprocessing import Pool

from tests.simulate.history import Violation
from tests.simulate.result import Result
from tests.simulate.run import Simulation, run_seed


def report(seed: int, violation: str) -> None:
    """Prints what went wrong, and the line that shows it again."""
    violation = re.sub("x{9,}", "x...", violation)  # what long values are padded with
    print(f"seed {seed}: {violation}\n    python -m tests.simulate --seed {seed} --trace", flush=True)


def run_one(seed: int, *, trace: bool) -> int:
    """Runs one seed; the exit code."""
    simulation = Simulation(seed, print if trace else None)
    try:
        print(f"seed {seed}: {simulation.run()}")
    except Violation as violation:
        report(seed, str(violation))
        return 1
    return 0


def run_many(seeds: range, jobs: int) -> int:
    """Runs a range of seeds and prints their sums; the exit code."""
    total, failed = Result(seeds=0), []
    for seed, result, violation in _results(seeds, jobs):
        total.add(result)
        if violation:
            failed.append(seed)
            report(seed, violation)
    print(f"{total.seeds} seeds: {total}")
    if failed:
        print(f"failed: {', '.join(map(str, sorted(failed)))}")
    return 1 if failed else 0


def _results(seeds: range, jobs: int) -> Iterator[tuple[int, Result, str]]:
    if jobs == 1:
        yield from map(run_seed, seeds)
        return
    with Pool(jobs) as pool:
        yield from pool.imap_unordered(run_seed, seeds, chunksize=10)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="run this one")
    what.add_argument("--seeds", help="run these, first-last")
    parser.add_argument("--jobs", type=int, default=1, help="processes for --seeds")
    parser.add_argument("--trace", action="store_true", help="with --seed: print everything that happens")
    options = parser.parse_args()
    if options.seed is not None:
        return run_one(options.seed, trace=options.trace)
    first, last = map(int, options.seeds.split("-"))
    return run_many(range(first, last + 1), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
