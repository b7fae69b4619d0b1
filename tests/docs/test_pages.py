"""Every example in the documents that can run is run as it stands, and prints what is shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import INTERPRETERS, Block, Step, blocks, programs, steps
from tests.docs.terminal import Terminal

PAGES = ("README.md", "docs/clients.md", "docs/commands.md", "docs/http.md", "docs/production.md", "docs/tools.md")

_SERVE = "(holdfast serve >server.log 2>&1 &); until grep -q listening server.log; do sleep 0.02; done"


@pytest.mark.costly("a real server, and every command and program of the page, one process each")
@pytest.mark.parametrize("page", PAGES)
def test_every_example_prints_what_is_shown(page: str, tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        terminal.type(_SERVE)
        for block in blocks(page):
            try:
                _try(block, terminal, tmp_path)
            except AssertionError as problem:
                raise AssertionError(f"{page}, line {block.line}: {problem}") from None


@pytest.mark.parametrize("page", PAGES)
def test_every_program_that_is_saved_is_run(page: str) -> None:
    typed = "".join(
        step.command + "\n" for block in blocks(page) if block.language == "console" for step in steps(block)
    )
    for name, text in programs(page).items():
        others = "".join(other for other in programs(page).values() if other != text)
        stem = Path(name).stem
        assert re.search(rf"{name}|--app {stem} |from {stem} import", typed + others), f"nothing runs {name}"


def _try(block: Block, terminal: Terminal, home: Path) -> None:
    if block.name:
        (home / block.name).write_text(block.text)
    elif block.language in INTERPRETERS:
        (home / "block").write_text(block.text)
        printed, code = terminal.type(f"{INTERPRETERS[block.language]} block")
        assert code == 0, printed
    elif block.language == "console":
        for step in steps(block):
            _type(step, terminal)


def _type(step: Step, terminal: Terminal) -> None:
    shown, interrupt, _ = step.output.partition("^C\n")
    pattern = _pattern(shown)
    if interrupt:
        terminal.type_until(step.command, pattern)
    else:
        printed, _ = terminal.type(step.command)
        assert pattern.fullmatch(printed), f"$ {step.command}\nprints\n{printed}\nand this is shown\n{shown}"


def _pattern(shown: str) -> re.Pattern[str]:
    """What is shown, where `...` stands for anything on its line, and alone on a line for any lines."""
    text = re.escape(shown.rstrip("\n"))
    text = re.sub(r"^\\\.\\\.\\\.$", r"(?:.*\n)*.*", text, flags=re.MULTILINE)
    return re.compile(text.replace(r"\.\.\.", ".*") + r"\n*")
