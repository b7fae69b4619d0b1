"""The report: medians, spread, ratios and goals as Markdown, and its place in docs/benchmarks.md. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from tests.bench.measure import Result
from tests.bench.rows import CROWDED, GO_1, HOLDFAST, NO_DOOR, NOBODY, REDIS, WEBDIS
from tests.bench.wrk import CLIENT, KIB_EACH, P50_MS, P99_MS, P999_MS, PER_S, Sample

BEGIN = "<!-- measured: `python -m tests.bench` replaces what stands from here to the end mark -->"
END = "<!-- end of measured -->"
PLOT = "benchmarks.svg"
"""The plot, beside the page."""

CLIENT_BUSY = 0.9
"""From this share of a core on, the client is taken to be the limit."""

FROM_TO = '"from, to" are the smallest and the largest of the rounds, of the first figure in the line.'
RATIO = '"Ours / it" is the ratio of that figure of Holdfast (of the last line of the row) and of the line.'
CPU = f'"Client\'s CPU" is its share of one core; † from {CLIENT_BUSY:.0%} on, where the client is the limit.'


@dataclass(frozen=True)
class Column:
    """A figure as it is shown."""

    title: str
    form: str


COLUMNS = {
    PER_S: Column("per second", "{:,.0f}"),
    P50_MS: Column("p50", "{:.2f} ms"),
    P99_MS: Column("p99", "{:.2f} ms"),
    P999_MS: Column("p99.9", "{:.2f} ms"),
    KIB_EACH: Column("each", "{:.1f} KiB"),
    CLIENT: Column("client's CPU", "{:.0%}"),
}

COMPARED = (PER_S, P50_MS, KIB_EACH)
"""The figure that rows are compared by: the first of these that they have."""


def medians(samples: Sequence[Sample]) -> Sample:
    """The median of each figure."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def compared_by(sample: Sample) -> str:
    """The figure that a row is compared by."""
    return next(name for name in COMPARED if name in sample)


@dataclass(frozen=True)
class Goal:
    """What the ratio of two medians should be, or one median.

    Args:
        title: of both.
        ours: row and target.
        theirs: row and target; None for a figure that stands by itself.
        figure: which one.
        bound: what it should reach.
        at_least: or at most.
    """

    title: str
    ours: tuple[str, str]
    theirs: tuple[str, str] | None
    figure: str
    bound: float
    at_least: bool = True

    def measured(self, results: dict[str, Result]) -> float | None:
        """What was reached; None when it was not measured."""
        ours = self._median(results, self.ours)
        if self.theirs is None or ours is None:
            return ours
        theirs = self._median(results, self.theirs)
        return ours / theirs if theirs else None

    def is_reached(self, value: float) -> bool:
        """Whether that is enough."""
        return value >= self.bound if self.at_least else value <= self.bound

    def _median(self, results: dict[str, Result], place: tuple[str, str]) -> float | None:
        row, target = place
        samples = results[row].samples.get(target) if row in results else None
        return medians(samples)[self.figure] if samples else None


_GET, _SET = ("get-50", HOLDFAST), ("set-50", HOLDFAST)
GOALS = (
    Goal("`GET`, against Webdis + Redis", _GET, ("get-50", WEBDIS), PER_S, 1.3),
    Goal("durable `SET`, against Webdis + Redis", _SET, ("set-50", WEBDIS), PER_S, 1.0),
    Goal("its p99", _SET, ("set-50", WEBDIS), P99_MS, 1.0, at_least=False),
    Goal("`GET`, against the Go map on one core", _GET, ("get-50", GO_1), PER_S, 1.0),
    Goal("`/pipeline` of 100 `SET`s, against Webdis's", ("pipeline", HOLDFAST), ("pipeline", WEBDIS), PER_S, 5.0),
    Goal(
        "hand-over p50, against `BLPOP` at Redis",
        ("hand-over", HOLDFAST),
        ("hand-over", REDIS),
        P50_MS,
        1.5,
        at_least=False,
    ),
    Goal("`GET` beside 10,000 parked", ("parked-get", CROWDED), ("parked-get", NOBODY), PER_S, 0.9),
    Goal("durable `SET` beside 10,000 parked", ("parked-set", CROWDED), ("parked-set", NOBODY), PER_S, 0.9),
    Goal("`GET`, door over `--no-door`", _GET, ("get-50", NO_DOOR), PER_S, 20.0),
    Goal("durable `SET`, door over `--no-door`", _SET, ("set-50", NO_DOOR), PER_S, 20.0),
    Goal("KiB for an idle connection", ("memory-idle", HOLDFAST), None, KIB_EACH, 12.0, at_least=False),
    Goal("KiB for a parked connection", ("memory-parked", HOLDFAST), None, KIB_EACH, 12.0, at_least=False),
)


def goals(results: Sequence[Result]) -> Iterator[str]:
    """The table of what was to be reached."""
    by_name = {result.row.name: result for result in results}
    yield from ("| | to reach | measured | |", "|---|---|---|---|")
    for goal in GOALS:
        value = goal.measured(by_name)
        sign = "x" if goal.theirs else "KiB"
        bound = f"{'at least' if goal.at_least else 'at most'} {goal.bound:g} {sign}"
        shown, verdict = "not measured", ""
        if value is not None:
            shown, verdict = f"{value:.2f} {sign}", "reached" if goal.is_reached(value) else "**not reached**"
        yield f"| {goal.title} | {bound} | {shown} | {verdict} |"


def table(results: Sequence[Result], known: dict[str, Column] = COLUMNS, ratio: str = "ours / it") -> Iterator[str]:
    """The table of a group of rows, with a line for each target.

    Args:
        results: of the rows.
        known: the figures that are shown, if they were taken.
        ratio: the heading of the last column.
    """
    seen = {name for result in results for samples in result.samples.values() for name in samples[0]}
    columns = {name: column for name, column in known.items() if name in seen}
    compared = compared_by(dict.fromkeys(seen, 0.0)) if seen else PER_S
    titles = [column.title for column in columns.values()]
    yield f"| | | {' | '.join(titles)} | from, to | {ratio} |"
    yield "|" + "---|" * (len(titles) + 4)
    for result in results:
        for number, target in enumerate(result.row.targets):
            cells = [result.row.title if number == 0 else "", target.name]
            if target.name in result.missing:
                cells += [f"not measured: {result.missing[target.name]}", *[""] * (len(titles) + 1)]
            else:
                cells += _figures(result, target.name, columns, compared)
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _figures(result: Result, target: str, columns: dict[str, Column], compared: str) -> Iterator[str]:
    samples = result.samples[target]
    middle = medians(samples)
    for name, column in columns.items():
        mark = " †" if name == CLIENT and middle.get(name, 0) >= CLIENT_BUSY else ""
        yield column.form.format(middle[name]) + mark if name in middle else ""
    form = columns[compared].form
    values = [sample[compared] for sample in samples]
    yield f"{form.format(min(values))}, {form.format(max(values))}"
    ours = result.samples.get(result.row.ours)
    yield "" if ours is None or target == result.row.ours else f"{medians(ours)[compared] / middle[compared]:.2f}"


def render(results: Sequence[Result], machine: Sequence[str], rounds: int, seconds: int, restart: str | None) -> str:
    """The whole report.

    Args:
        results: in the order of the report.
        machine: lines about it.
        rounds: how many.
        seconds: of each measurement.
        restart: the report about starting again.
    """
    lines = [
        f"![Requests a second and latencies of GET and SET]({PLOT})",
        "",
        *(f"- {line}" for line in machine),
        f"- {rounds} rounds of {seconds} s, in turn. Figures are medians; {FROM_TO}",
        f"- {RATIO}",
        f"- {CPU}",
        "",
        "### What was to be reached",
        "",
        *goals(results),
    ]
    for group, rows in groupby(results, key=lambda result: result.row.group):
        several = list(rows)
        note = next((result.row.note for result in several if result.row.note), "")
        lines += ["", f"### {group}", "", *([note, ""] if note else []), *table(several)]
    if restart is not None:
        lines += ["", "### Starting again, and memory of the data", "", restart]
    return "\n".join(lines)


def insert(page: str, report: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """A page with the report between its marks."""
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    assert begin, f"the page has no place for the report: {marks[0]}"
    assert end, f"the place for the report has no end: {marks[1]}"
    return f"{before}{begin}\n\n{report}\n\n{end}{after}"
