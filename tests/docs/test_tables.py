"""The tables for operators are whole: each option, each number of /stats and each exit code has its row."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from api.cli.serve import serve_command
from api.server.exit_codes import ExitCode
from engine.redis.statistics import ClusterStatistics
from tests.harness.process import ROOT, Server

PRODUCTION, CLUSTER = ((ROOT / "docs" / name).read_text() for name in ("production.md", "cluster.md"))

FROM_SIGNALS = 128
"""Codes from here on tell which signal ended a process."""


def first_cells(page: str) -> list[str]:
    """What stands in the first column of the page's tables."""
    return re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)


def test_every_option_of_serve_has_a_row() -> None:
    cells = first_cells(PRODUCTION + CLUSTER)
    named = {name for cell in cells for name in re.findall(r"`(--[a-z-]+)", cell)}
    assert [option.opts[0] for option in serve_command.params if option.opts[0] not in named] == []


def test_every_number_of_stats_has_a_row(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        members = server.get("/stats")[1]
    cells = [name for cell in first_cells(PRODUCTION) for name in re.findall(r"`(\w+)`", cell)]
    assert [name for name in members if name not in cells] == []


def test_every_number_of_a_front_has_a_row() -> None:
    cells = [name for cell in first_cells(PRODUCTION + CLUSTER) for name in re.findall(r"`(\w+)`", cell)]
    assert [field.name for field in dataclasses.fields(ClusterStatistics) if field.name not in cells] == []


def test_every_exit_code_has_a_row() -> None:
    of_tools = set(ExitCode) - {ExitCode.LOG_FAILED}
    of_servers = {code for code in ExitCode if code < FROM_SIGNALS}
    for page, codes in (("production.md", of_servers), ("tools.md", of_tools)):
        cells = first_cells((ROOT / "docs" / page).read_text())
        assert [code for code in codes if str(code.value) not in cells] == [], page
