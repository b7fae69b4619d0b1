"""The documentation is true: what is generated is fresh, what is shown is what happens."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from api.dialects import bodies
from docs import make_commands
from engine.commands import table as commands
from engine.commands.grammar import Row
from engine.limits import Limits
from tests.harness.process import ROOT, Server
from tests.test_rooms import ROOMS

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\]\(([^):]+)\)")


def test_the_command_reference_is_fresh(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        assert make_commands.TARGET.read_text() == make_commands.render(server), "run python -m docs.make_commands"


@pytest.mark.parametrize("path", make_commands.PAGES, ids=lambda path: path.name)
def test_the_names_of_commands_are_all_there(path: Path) -> None:
    page = path.read_text()
    assert page == make_commands.refreshed(page), "run python -m docs.make_commands"


@pytest.mark.parametrize("row", commands.TABLE, ids=lambda row: row.name)
def test_the_examples_of_a_command_mean_the_same_in_both_dialects(row: Row) -> None:
    for line in (*row.examples, *row.more_examples):
        in_a_line = bodies.understand(json.dumps({"command": line}).encode(), Limits())[1]
        owner = commands.lookup(line.split()[0].encode())
        assert owner is not None
        assert bodies.understand(make_commands.in_fields(owner, line).encode(), Limits())[1] == in_a_line
    assert {line.split()[0] for line in row.more_examples} == {row.name}


def headings(page: Path) -> set[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_no_link_of_the_documentation_leads_nowhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


ROWS = {"A": 17, "B": 16, "C": 9, "D": 6, "E": 17, "H": 7}
"""The failure modes of docs/testing.md: how many each section has."""

WITHOUT_TEST = {"H5", *(f"E{number}" for number in range(11, 18))}


def failure_modes() -> dict[str, list[tuple[str, str]]]:
    """The tests that docs/testing.md names for each failure mode: file and name."""
    section = (ROOT / "docs/testing.md").read_text().partition("## Failure modes")[2]
    modes: dict[str, list[tuple[str, str]]] = {}
    for kind, first, last, row in re.findall(r"^\| ([A-H])(\d+)(?: to [A-H](\d+))? \|(.*) \|$", section, re.MULTILINE):
        for number in range(int(first), int(last or first) + 1):
            modes[f"{kind}{number}"] = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
    return modes


def docstrings() -> dict[tuple[str, str], str]:
    """The docstring of every test, by file and name."""
    return {
        (path.name, node.name): ast.get_docstring(node) or ""
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_failure_mode_is_held_by_a_test_that_names_it() -> None:
    modes, found = failure_modes(), docstrings()
    assert sorted(modes) == sorted(f"{kind}{number + 1}" for kind, count in ROWS.items() for number in range(count))
    assert {mode for mode, tests in modes.items() if not tests} == WITHOUT_TEST
    missing = [
        (mode, *test)
        for mode, tests in modes.items()
        for test in tests
        if not re.search(rf"\b{mode}\b", found.get(test, ""))
    ]
    assert missing == [], "a test that is not there, or whose docstring does not name the row"


PATH = re.compile(r"`((?:api|engine|wal|tests|docs)/[\w/.<>*{},]+)`")


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_every_path_that_is_named_is_there(page: Path) -> None:
    for path in PATH.findall(page.read_text()):
        pattern = re.sub(r"<\w+>", "*", path)
        assert (ROOT / path).exists() or list(ROOT.glob(pattern)), path


def test_the_picture_shows_every_room() -> None:
    shown = (ROOT / "docs/house.svg").read_text()
    assert [room for room in ROOMS if room != "api" and f">{room}/</text>" not in shown] == []
