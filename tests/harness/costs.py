"""What tests cost, in CPU seconds: printed at the end of each run, so that nobody has to look for what became slow.

CPU time, not that of a clock: a busy machine stretches the one a few per cent and the other manifold. That of other
processes counts in the test in which they are waited for. Nothing fails because of it.
"""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Generator

import pytest

from tests.harness import fork_server

TEST_CPU_S_MAX = 3.0
"""A test that takes more says why, in its mark `costly`, or is named at the end of the run."""

FILES_NAMED = 10

_COST = "cpu_s"
_EXCUSE = "costly"


def _used_s() -> float:
    """By this process so far, and by those it has waited for."""
    return sum(fork_server.spent) + sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


class Costs:
    """A plugin of pytest: where tests run it enters their cost into the reports, and where reports come it adds up."""

    def __init__(self) -> None:
        self._counted_s = _used_s()
        self._files: Counter[str] = Counter()
        self._tests: Counter[str] = Counter()
        self._excused: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Enters the CPU time since the last report; what comes between two tests is put down to the second."""
        report = yield
        used_s = _used_s()
        report.user_properties.append((_COST, used_s - self._counted_s))
        report.user_properties.append((_EXCUSE, item.get_closest_marker(_EXCUSE) is not None))
        self._counted_s = used_s
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Adds a report up."""
        noted = dict(report.user_properties)
        cost_s = noted[_COST]
        assert isinstance(cost_s, float)
        self._files[report.nodeid.partition("::")[0]] += cost_s  # type: ignore[assignment]  # a Counter of seconds
        if report.when == "call":  # else it is for whatever the tests of a file, or all of them, share
            self._tests[report.nodeid] += cost_s  # type: ignore[assignment]
            if noted[_EXCUSE]:
                self._excused.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Prints the sum, the files that took most, and the tests that took too much."""
        if len(self._tests) < 2:
            return
        say = terminalreporter.write_line
        say(f"{sum(self._files.values()):.0f} s of CPU, most of it in")
        for name, cost_s in self._files.most_common(FILES_NAMED):
            say(f"{cost_s:6.1f} s {name}")
        for name, cost_s in self._tests.most_common():
            if cost_s > TEST_CPU_S_MAX and name not in self._excused:
                say(f"{cost_s:6.1f} s {name}: more than {TEST_CPU_S_MAX} s, and no mark `{_EXCUSE}` says why")
