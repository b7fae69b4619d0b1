"""`python -m tests.drill` plants every bug and has it found; exit code 1 when one escapes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import Pool

from tests.drill.bugs import BY_NAME
from tests.drill.search import SEEDS, Catch, look_for

SHOWN_CHARACTERS = 2_000


def look_for_all(names: Sequence[str], seeds: range, jobs: int) -> Iterator[tuple[str, Catch | None, str]]:
    """Looks for several, in processes; in their order."""
    if jobs == 1:
        yield from (look_for(name, seeds) for name in names)
        return
    with Pool(jobs) as pool:
        yield from pool.imap(partial(look_for, seeds=seeds), names)


def report(name: str, found: Catch | None, reason: str) -> None:
    """Prints a row of the table."""
    if found is None:
        print(f"{name:56} ESCAPED\n{reason[:SHOWN_CHARACTERS]}", flush=True)
    else:
        print(f"{name:56} {found.seeds or '':>5} {found.seconds:>6.1f}  {found.by}", flush=True)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    parser.add_argument("--bug", choices=BY_NAME, metavar="NAME", help="only this one, and say what it is")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="tried for each, from 1")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    options = parser.parse_args()
    names = [options.bug] if options.bug else list(BY_NAME)
    if options.bug:
        print(f"{BY_NAME[options.bug].story}\n")
    print(f"{'bug':56} {'seeds':>5} {'s':>6}  caught by")
    escaped = []
    for name, found, reason in look_for_all(names, range(1, options.seeds + 1), min(options.jobs, len(names))):
        report(name, found, reason)
        if found is None:
            escaped.append(name)
    print(f"{len(names) - len(escaped)} of {len(names)} caught")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
