"""What is seen of something long."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import pty
import re
import sys
from collections.abc import Iterator

import pytest

from api.server import progress
from api.server.progress import Progress, ReplayProgress, Starting


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


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Has stderr be a terminal, where each step is drawn; in the end the list holds what was."""
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "REDRAW_S", 0.0)
    drawn: list[str] = []
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", file)
        yield drawn
    with contextlib.suppress(OSError):  # EIO: all of it has been read
        while piece := os.read(ours, 65_536):
            drawn.append(piece.decode())
    os.close(ours)


def test_a_bar_that_begins_anew_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn, Progress("reading", print) as bar:
        for done in (90, 100, 10, 100):
            bar(done, 100)
    text = "".join(drawn)
    assert text.count("100%") == 2
    assert "reading" in text


def test_what_is_done_is_drawn_to_the_end_and_what_follows_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was told last: steps between two drawings are not drawn, and an estimate need not be met."""
    with terminal(monkeypatch) as drawn:
        with Progress("reading", print) as bar:
            bar(98, 100)
        print("result", file=sys.stderr, flush=True)
    text = "".join(drawn)
    assert "98%" in text
    assert re.search(r"100%[^\n]*\nresult", text), text


def test_what_fails_is_left_where_it_was_and_what_follows_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        with contextlib.suppress(ZeroDivisionError), Progress("reading", print) as bar:
            bar(98, 100)
            raise ZeroDivisionError
        print("why", file=sys.stderr, flush=True)
    text = "".join(drawn)
    assert "100%" not in text
    assert re.search(r"98%[^\n]*\nwhy", text), text


def test_what_is_logged_during_a_replay_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as drawn:
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger().addHandler(handler)
        try:
            with ReplayProgress(lambda: False, Starting()) as bar:
                bar(98, 100)
                logging.getLogger("holdfast.wal").warning("torn tail")
                bar(99, 100)
            logging.getLogger("holdfast.wal").warning("listening")
        finally:
            logging.getLogger().removeHandler(handler)
        assert handler.filters == []
    text = "".join(drawn)
    assert re.search(r"98%[^\n]*\ntorn tail\r?\n", text), text
    assert re.search(r"100%[^\n]*\nlistening", text), text


def test_a_terminal_that_is_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, _text: str) -> int:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "REDRAW_S", 0.0)
    monkeypatch.setattr(sys, "stderr", Gone())
    with Progress("reading", print) as bar:
        bar(50, 100)
        bar(60, 100)
