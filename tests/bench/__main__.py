"""The benchmark: Holdfast beside its peers, in one run, in turn; the report goes into docs/benchmarks.md.

    python -m tests.bench [--rounds 5] [--seconds 2] [--only get-50 'set-*' replay] [--data DIR]

It starts every server itself, with durable settings that are the same for all, and ends it. With `--only` nothing is
written, only printed. The machine should have nothing else to do.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from tests.bench import recovery
from tests.bench.crowd import allow_many_files
from tests.bench.machine import describe
from tests.bench.measure import FAILURES, Result, Row, Setup, measure, reason
from tests.bench.peers import missing_packages
from tests.bench.report import PLOT, insert, render, table
from tests.bench.rows import all_rows
from tests.bench.settings import durable_settings
from tests.harness.process import ROOT

REPLAY = "replay"
REPLAY_RECORDS = 1_000_000
REPLAY_ROUNDS_MAX = 3
PAGE = ROOT / "docs" / "benchmarks.md"


def parse_arguments(names: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured (5)")
    parser.add_argument("--seconds", type=int, default=2, help="how long each measurement takes (2)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"only these, * for any: {' '.join(names)}")
    parser.add_argument("--data", type=Path, help="where the servers keep their data; it is removed afterwards")
    parser.add_argument("--records", type=int, default=REPLAY_RECORDS, help="how many are replayed (1,000,000)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds < 1:
        parser.error("at least one round of one second")
    for pattern in arguments.only or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            parser.error(f"there is no row {pattern}")
    return arguments


def say(text: str) -> None:
    """Tells how far it is."""
    print(text, file=sys.stderr, flush=True)


def run(rows: list[Row], setup: Setup, rounds: int) -> list[Result]:
    """Measures the rows one after the other; what each has written is removed before the next."""
    results = []
    for row in rows:
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=setup.directory) as own:
            results.append(measure(row, Setup(Path(own), setup.seconds), rounds))
        say(f"\n{row.group}, {row.title} ({time.monotonic() - started_s:.0f} s)\n\n" + "\n".join(table(results[-1:])))
    return results


def run_replay(records: int, rounds: int, directory: Path) -> str:
    """Measures how long servers take to start with data; Markdown."""
    try:
        with tempfile.TemporaryDirectory(dir=directory) as own:
            return recovery.report(records, rounds, recovery.run(records, rounds, Path(own)))
    except FAILURES as error:
        return f"Not measured: {reason(error)}"


def end(*_signal: object) -> NoReturn:
    """Ends it, and every server with it."""
    raise SystemExit(1)


def main() -> None:
    """Runs it as the module says."""
    rows = all_rows()
    names = [*(row.name for row in rows), REPLAY]
    arguments = parse_arguments(names)
    if missing := missing_packages():
        raise SystemExit(f"these are needed:  apt-get install {' '.join(missing)}")
    if not arguments.only:
        need_plot()
    signal.signal(signal.SIGTERM, end)
    allow_many_files()
    chosen = {name for name in names if any(fnmatchcase(name, pattern) for pattern in arguments.only or ["*"])}
    started_s = time.monotonic()
    if arguments.data is not None:
        arguments.data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.data, prefix="holdfast-bench-") as scratch:
        directory = Path(scratch)
        machine = [*describe(directory), *durable_settings(directory)]
        say("\n".join(machine))
        setup = Setup(directory, arguments.seconds)
        results = run([row for row in rows if row.name in chosen], setup, arguments.rounds)
        restart = None
        if REPLAY in chosen:
            restart = run_replay(arguments.records, min(arguments.rounds, REPLAY_ROUNDS_MAX), directory)
    report = render(results, machine, arguments.rounds, arguments.seconds, restart)
    print(report)
    if not arguments.only:
        write(report, results)
    say(f"\n{(time.monotonic() - started_s) / 60:.0f} minutes")


def need_plot() -> None:
    """Ends at once when the plot could not be drawn at the end."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("these are needed:  pip install -e '.[bench]'")


def write(report: str, results: list[Result]) -> None:
    """Puts the report into its page, and the plot beside it."""
    from tests.bench.plot import draw  # only here: who looks at some rows needs no matplotlib

    PAGE.write_text(insert(PAGE.read_text(), report))
    plot = PAGE.with_name(PLOT)
    draw(results, plot)
    say(f"written: {PAGE.relative_to(ROOT)}, {plot.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
