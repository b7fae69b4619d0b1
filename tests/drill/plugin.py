"""For pytest: `-p tests.drill.plugin --plant NAME` runs tests with a bug planted, to see which of them find it."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.drill.bugs import BY_NAME
from tests.drill.plant import failed_itself, planted

MEANINGLESS = 10
"""Exit code: a test failed, but not by what the bug does."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption("--plant", choices=BY_NAME, required=True, help="the bug")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Runs a test with the bug planted."""
    with planted(BY_NAME[item.config.getoption("--plant")]) as hits:
        try:
            return (yield)
        except Exception as error:
            if not hits.count or failed_itself(error):
                pytest.exit(f"{item.nodeid} failed, but not by the bug: {error!r}", MEANINGLESS)
            raise
