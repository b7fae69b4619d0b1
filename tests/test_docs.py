"""The documentation is true: what is generated is fresh, what is shown is what happens."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from api import dialects
from docs import make_commands
from engine import commands
from engine.limits import Limits
from tests.harness.process import ROOT, Server

README = (ROOT / "README.md").read_text()
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def test_the_command_reference_is_fresh() -> None:
    assert make_commands.TARGET.read_text() == make_commands.render(), "run python -m docs.make_commands"


def test_both_examples_of_every_command_mean_the_same() -> None:
    examples = re.findall(r"^- (?:Line|Fields): `(\{.*?\})` answers", make_commands.render(), re.MULTILINE)
    assert len(examples) == 2 * len(commands.TABLE)
    argvs = [dialects.parse(example.encode(), Limits()).argv for example in examples]
    for spec, line, fields in zip(commands.TABLE, argvs[::2], argvs[1::2], strict=True):
        assert line == fields
        assert isinstance(commands.parse(line, Limits()), spec.command)


@pytest.mark.parametrize("page", [README, *(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))])
def test_no_link_of_the_documentation_leads_nowhere(page: str) -> None:
    for target in LINK.findall(page):
        assert (ROOT / target).exists() or (ROOT / "docs" / target).exists(), target


def test_the_readme_session_answers_as_shown(tmp_path: Path) -> None:
    sessions = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    steps = re.findall(r"^\$ (curl .*)\n((?:[^$].*\n)*)", "".join(sessions), re.MULTILINE)
    assert len(steps) >= 12
    with Server(tmp_path / "data") as server:
        for command, shown in steps:
            typed = command.replace("localhost:8080", f"-sS localhost:{server.port}")
            ran = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, timeout=20, check=True)
            assert ran.stdout == shown.rstrip("\n"), command
            if ran.stdout:
                json.loads(ran.stdout)
