"""What the benchmark makes of what it measures: parsing, medians, tables, goals, plot. It measures nothing here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from engine.redis.scripts import ALONE
from tests.bench import clients, cluster, machine, report, waiting, wrk
from tests.bench.__main__ import PAGE
from tests.bench.measure import Measure, Result, Row, Setup, Target, measure
from tests.bench.peers import NotMeasured
from tests.bench.plot import draw
from tests.bench.report import BEGIN, END, Goal
from tests.bench.rows import CONNECTIONS, GO_1, HOLDFAST, WEBDIS, all_rows
from tests.bench.wrk import CLIENT, P50_MS, P99_MS, P999_MS, PER_S, Request, Sample
from tests.harness.redis import RedisCluster

# wrk


def output(*errors: int) -> str:
    counts = " ".join(str(count) for count in errors)
    return f"Running 2s test\nRequests/sec: 1\nbench 84000 2000000 {counts} 755.000 4804.500 9000.000\n"


def test_the_line_that_the_script_prints_is_read() -> None:
    sample = wrk.parse(output(0, 0, 0, 0, 0))
    assert sample == {PER_S: 42_000.0, P50_MS: 0.755, P99_MS: 4.8045, P999_MS: 9.0}


@pytest.mark.parametrize(
    ("place", "said"), [(0, "connections"), (1, "reads"), (2, "writes"), (3, "are errors"), (4, "timeouts")]
)
def test_any_error_voids_a_run(place: int, said: str) -> None:
    errors = [0] * 5
    errors[place] = 3
    with pytest.raises(NotMeasured, match=f"^3 .*{said}$"):
        wrk.parse(output(*errors))


@pytest.mark.parametrize("text", ["", "bench\n", "Requests/sec: 1\n", output(0, 0, 0, 0, 0).replace("84000", "0")])
def test_a_run_without_a_result_is_void(text: str) -> None:
    with pytest.raises(NotMeasured):
        wrk.parse(text)


def test_a_single_request_costs_no_lua_while_the_time_is_taken() -> None:
    lua = wrk.in_turn([Request(body='{"command": "GET hello"}')])
    assert 'wrk.method, wrk.path, wrk.body = "POST", "/", "{\\"command\\": \\"GET hello\\"}"' in lua
    assert "function()" not in lua


def test_several_requests_are_sent_in_turn() -> None:
    lua = wrk.in_turn([Request(body="a"), Request("/b", method="GET")])
    assert 'made = {wrk.format("POST", "/", nil, "a"), wrk.format("GET", "/b", nil, nil)}' in lua
    assert "turn % 2 + 1" in lua


# Statistics


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (99, 99), (99.9, 100), (100, 100)], ids=str
)
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(percent: float, expected: float) -> None:
    assert clients.percentile(range(1, 101), percent) == expected


def test_latencies_come_to_a_rate_percentiles_and_the_share_of_the_client() -> None:
    sample = clients.sample_of([0.003, 0.001, 0.002], wall_s=2.0, cpu_s=0.5)
    assert sample == {PER_S: 1.5, P50_MS: 2.0, P99_MS: 3.0, P999_MS: 3.0, CLIENT: 0.25}


def test_the_median_is_taken_of_each_figure() -> None:
    samples = [{PER_S: 1.0, P50_MS: 9.0}, {PER_S: 5.0, P50_MS: 8.0}, {PER_S: 2.0, P50_MS: 7.0}]
    assert report.medians(samples) == {PER_S: 2.0, P50_MS: 8.0}


def test_the_processor_is_named_as_the_system_names_it() -> None:
    assert machine.processor("processor\t: 0\nmodel name\t: Some CPU\nmodel name\t: Some CPU\n") == "Some CPU"


def test_a_program_that_is_not_there_has_no_version() -> None:
    assert machine.version_of(["no-such-program"], "(.*)") == "of unknown version"


# Rows


def target(name: str, *samples: Sample | Exception) -> tuple[Target, list[str]]:
    """A target that gives these samples, and a list of what happened to it."""
    events: list[str] = []
    left = list(samples)

    @contextmanager
    def start(setup: Setup) -> Iterator[Measure]:
        assert setup.directory.is_dir()
        events.append("started")
        if not left:
            raise NotMeasured("it does not start\nat all")

        def take() -> Sample:
            events.append("taken")
            sample = left.pop(0)
            if isinstance(sample, Exception):
                raise sample
            return sample

        try:
            yield take
        finally:
            events.append("ended")

    return Target(name, start), events


def row_of(*targets: Target) -> Row:
    return Row("row", "Group", "title", targets, ours=targets[-1].name)


def test_what_cannot_be_measured_says_why_and_disturbs_nobody_else(tmp_path: Path) -> None:
    absent, absent_events = target("absent")
    failing, failing_events = target("failing", {PER_S: 1.0}, OSError("it fell over"), {PER_S: 3.0})
    well, well_events = target("well", {PER_S: 1.0}, {PER_S: 2.0}, {PER_S: 3.0})
    result = measure(row_of(absent, failing, well), Setup(tmp_path, 1), rounds=3)
    assert result.missing == {"absent": "it does not start ... at all", "failing": "it fell over"}
    assert result.samples == {"well": [{PER_S: 1.0}, {PER_S: 2.0}, {PER_S: 3.0}]}
    assert absent_events == ["started"]
    assert failing_events == ["started", "taken", "taken", "ended"]
    assert well_events == ["started", "taken", "taken", "taken", "ended"]


def test_a_fault_of_the_benchmark_ends_the_servers_and_is_not_hidden(tmp_path: Path) -> None:
    faulty, events = target("faulty", ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        measure(row_of(faulty), Setup(tmp_path, 1), rounds=2)
    assert events == ["started", "taken", "ended"]


def test_every_row_has_a_name_of_its_own_and_is_compared_with_a_target_that_it_has() -> None:
    rows = all_rows()
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        assert row.ours in [target.name for target in row.targets]


def test_every_goal_is_about_targets_that_are_measured() -> None:
    measured = {(row.name, target.name) for row in all_rows() for target in row.targets}
    for goal in report.GOALS:
        assert {goal.ours, goal.theirs or goal.ours} <= measured


# The report


def result_of(**samples: list[Sample]) -> Result:
    targets = [Target(name, lambda _: pytest.fail("it is not started")) for name in samples]
    return Result(row_of(*targets), {name: taken for name, taken in samples.items() if taken})


def test_the_table_shows_medians_spread_and_ratios() -> None:
    result = result_of(
        theirs=[{PER_S: 3000.0, CLIENT: 0.95}, {PER_S: 1000.0, CLIENT: 0.93}, {PER_S: 2000.0, CLIENT: 0.94}],
        ours=[{PER_S: 5000.0, CLIENT: 0.5}],
    )
    assert list(report.table([result])) == [
        "| | | per second | client's CPU | from, to | ours / it |",
        "|---|---|---|---|---|---|",
        "| title | theirs | 2,000 | 94% † | 1,000, 3,000 | 2.50 |",
        "|  | ours | 5,000 | 50% | 5,000, 5,000 |  |",
    ]


def test_the_table_says_why_a_figure_is_missing() -> None:
    result = result_of(theirs=[], ours=[{PER_S: 5000.0}])
    result.missing["theirs"] = "a | b"
    assert list(report.table([result]))[2] == "| title | theirs | not measured: a / b |  |  |"


def test_a_table_of_nothing_but_reasons_is_a_table() -> None:
    result = result_of(theirs=[], ours=[])
    result.missing |= {"theirs": "no", "ours": "neither"}
    assert list(report.table([result]))[2:] == [
        "| title | theirs | not measured: no |  |",
        "|  | ours | not measured: neither |  |",
    ]


GOAL = Goal("rate", ("row", "ours"), ("row", "theirs"), PER_S, 1.3)


def test_a_goal_is_a_ratio_of_medians_or_not_measured() -> None:
    result = result_of(theirs=[{PER_S: 100.0}], ours=[{PER_S: 130.0}, {PER_S: 1.0}, {PER_S: 500.0}])
    assert GOAL.measured({"row": result}) == 1.3
    assert GOAL.measured({}) is None
    assert GOAL.measured({"row": result_of(theirs=[], ours=[{PER_S: 1.0}])}) is None
    alone = Goal("rate", ("row", "ours"), None, PER_S, 1.0)
    assert alone.measured({"row": result}) == 130.0


def test_a_goal_is_reached_at_its_bound_and_not_beyond_it() -> None:
    assert GOAL.is_reached(1.3)
    assert not GOAL.is_reached(1.29)
    at_most = Goal("p99", ("row", "ours"), ("row", "theirs"), P99_MS, 1.0, at_least=False)
    assert at_most.is_reached(1.0)
    assert not at_most.is_reached(1.01)


def everything() -> list[Result]:
    """A result for every row, all figures alike."""
    sample = dict.fromkeys(report.COLUMNS, 1.0)
    return [Result(row, {target.name: [sample] for target in row.targets}) for row in all_rows()]


def test_the_report_has_every_row_and_every_goal() -> None:
    page = report.render(everything(), ["a machine"], 5, 2, "loaded")
    assert "- a machine\n- 5 rounds of 2 s" in page
    for row in all_rows():
        assert f"### {row.group}\n" in page
        assert f"| {row.title} | {row.targets[0].name} | 1 |" in page
    for goal in report.GOALS:
        assert f"| {goal.title} | at " in page
    assert page.endswith("\n\nloaded")


def test_the_report_replaces_the_one_before_and_nothing_else() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = report.insert(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert report.insert(once, "new") == once


@pytest.mark.parametrize("page", ["", BEGIN, END])
def test_a_page_without_a_place_for_the_report_is_not_written(page: str) -> None:
    with pytest.raises(AssertionError, match="place for the report"):
        report.insert(page, "new")


# Fronts of a cluster


def test_servers_that_are_asked_at_once_add_up_and_the_slowest_tells_the_latency() -> None:
    one, other = {PER_S: 100.0, P50_MS: 2.0, P99_MS: 3.0}, {PER_S: 50.0, P50_MS: 1.0, P99_MS: 4.0}
    assert cluster.together([one, other]) == {PER_S: 150.0, P50_MS: 2.0, P99_MS: 4.0}


def test_each_queue_is_popped_as_often_as_it_is_pushed_to() -> None:
    bodies = [request.body or "" for request in cluster.pushes_and_pops()]
    assert len(bodies) == 2 * cluster.QUEUES
    for number in range(cluster.QUEUES):
        assert sum(f" jobs:{number} value" in body for body in bodies) == 1
        assert sum(f'"QPOP jobs:{number}"' in body for body in bodies) == 1


def test_the_rows_that_the_help_names_are_those_that_there_are(redis_cluster: RedisCluster) -> None:
    ways = ("embedded", "relaxed", "one", "two", "one_always", "two_always", "one_careful")
    house = SimpleNamespace(cluster=redis_cluster, **{name: cluster.Way(name, ()) for name in ways})
    assert tuple(row.name for row in cluster.all_rows(cast(cluster.House, house))) == cluster.NAMES


def test_the_report_on_fronts_names_what_it_is_compared_with_and_what_it_took() -> None:
    sample = {PER_S: 1000.0, cluster.SERVER_US: 20.0, cluster.CORE_PER_S: 50_000.0}
    result = result_of(front=[sample | {cluster.REDIS_US: 5.0}], embedded=[sample])
    page = cluster.render([result], ["a machine"], 3, 2)
    assert "| per second | Holdfast's CPU | Redis's CPU | a core does | from, to | embedded / it |" in page
    assert "| title | front | 1,000 | 20.0 µs | 5.0 µs | 50,000 | 1,000, 1,000 | 1.00 |" in page
    assert "|  | embedded | 1,000 | 20.0 µs |  | 50,000 | 1,000, 1,000 |  |" in page


def test_the_page_has_places_for_both_reports() -> None:
    page = PAGE.read_text()
    for marks in ((BEGIN, END), cluster.MARKS):
        assert f"{marks[0]}\n\nnew\n\n{marks[1]}" in report.insert(page, "new", marks)


def test_the_push_that_publishes_is_the_usual_one_and_a_message() -> None:
    usual, publishing = ALONE["QPUSH"].source.splitlines(), waiting.publishing_script().splitlines()
    assert publishing == [usual[0], b"redis.call('SPUBLISH', KEYS[1], '')", *usual[1:]]


# The plot


def test_the_same_figures_make_the_same_plot(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw(everything(), tmp_path / name)
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    for word in (WEBDIS, f"{GO_1} (nothing on disk)", HOLDFAST, "GET hello", *map(str, CONNECTIONS)):
        assert f">{word}<" in drawn


def test_a_plot_shows_what_there_is_when_rows_are_missing(tmp_path: Path) -> None:
    draw([], tmp_path / "empty.svg")
    some = everything()
    del some[0].samples[HOLDFAST]
    draw(some, tmp_path / "some.svg")
    assert "requests a second" in (tmp_path / "some.svg").read_text()
