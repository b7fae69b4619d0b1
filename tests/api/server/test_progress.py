"""What is seen of something long."""

from __future__ import annotations

import contextlib
import os
import pty
import sys

import pytest

from api.server import progress
from api.server.progress import Progress


def test_without_a_terminal_progress_is_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    with Progress("verifying", said.append) as bar:
        bar(25_000_000, 100_000_000)
        bar(50_000_000, 100_000_000)
    assert said == ["verifying 100 MB: 25%"]


def test_what_is_counted_has_a_name_and_a_total_may_not_be_known(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    with Progress("writing", said.append, progress.keys_and_queues) as bar:
        bar(500, 2_000)
        bar(1_500, 0)
    assert said == ["writing 2,000 keys and queues: 25%", "writing 1,500 keys and queues"]


def test_what_is_quick_shows_nothing() -> None:
    said: list[str] = []
    with Progress("verifying", said.append) as bar:
        bar(1, 2)
    assert said == []


def test_a_bar_that_begins_anew_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "REDRAW_S", 0.0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with Progress("reading", print) as bar:
            for done in (90, 100, 10, 100):
                bar(done, 100)
    drawn = ""
    with contextlib.suppress(OSError):  # EIO: all of it has been read
        while piece := os.read(ours, 65_536):
            drawn += piece.decode()
    os.close(ours)
    assert drawn.count("100%") == 2
    assert "reading" in drawn
