"""Refused requests in numbers and in the log, and how often a line of the log is repeated."""

from __future__ import annotations

import logging

import pytest

from api.app import application
from api.dialects.answers import failure
from api.door import channel, exchange
from api.http import service
from api.http.refusals import SELDOM_S, STATUSES, Refusals, Seldom, complain_seldom
from engine.redis import faults

WRONG_TOKEN = failure(401, "unauthorized", "the token is wrong")
FOREIGN = failure(403, "forbidden", "requests of pages from the origin 'http://evil.example' are not taken here")


def address() -> str:
    return "192.0.2.7"


def test_refusals_are_counted_by_status_and_all_others_are_zero() -> None:
    refusals = Refusals()
    for _ in range(3):
        refusals.note(failure(400, "invalid request"), address)
    refusals.note(WRONG_TOKEN, address)
    for status in (200, 204, 503):
        refusals.count(status)
    counted = {"refused_400": 3, "refused_401": 1, "refused_503": 1}
    assert refusals.statistics() == {f"refused_{status}": 0 for status in STATUSES} | counted


def test_who_was_not_let_in_and_why_is_logged_once_in_a_while_for_each_status(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    refusals = Refusals()
    for _ in range(5):
        refusals.note(WRONG_TOKEN, address)
        refusals.note(FOREIGN, address)
        refusals.note(failure(400, "invalid request"), address)
    now_s += SELDOM_S
    refusals.note(WRONG_TOKEN, address)
    assert [record.getMessage() for record in caplog.records] == [
        "refused 192.0.2.7: 401 unauthorized, the token is wrong",
        "refused 192.0.2.7: 403 forbidden, requests of pages from the origin 'http://evil.example' are not taken here",
        "refused 192.0.2.7: 401 unauthorized, the token is wrong (and 4 more since the last such line)",
    ]


class Log:
    """A logger of its own with the filter, whose clock the test moves."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.now_s = 0.0
        self.logger = logging.getLogger(f"test.{id(self)}")
        self.logger.addFilter(Seldom(lambda: self.now_s))
        self._caplog = caplog

    @property
    def lines(self) -> list[str]:
        return [record.getMessage() for record in self._caplog.records]


def _raise(kind: type[Exception]) -> None:
    raise kind


def fail(log: Log, kind: type[Exception]) -> None:
    try:
        _raise(kind)
    except kind:
        log.logger.exception("a request failed")


def fail_elsewhere(log: Log) -> None:
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        log.logger.exception("a request failed")


def test_f11_what_a_client_can_repeat_is_logged_once_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    """F11"""
    log = Log(caplog)
    for number in range(1000):
        log.logger.error("a client did %d", number)
        fail(log, ZeroDivisionError)
    assert log.lines == ["a client did 0", "a request failed"]
    log.now_s = SELDOM_S
    log.logger.error("a client did %d", 1000)
    assert log.lines[2:] == ["a client did 1000 (and 999 more since the last such line)"]


def test_another_defect_is_logged_though_it_has_the_same_words(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(caplog)
    fail(log, ZeroDivisionError)
    fail(log, KeyError)
    fail_elsewhere(log)
    log.logger.error("a request failed")
    assert len(log.lines) == 4


def test_what_is_remembered_of_lines_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    log = Log(caplog)
    for number in range(10_000):
        log.now_s += 1
        log.logger.error(f"number {number}")  # each is a kind of its own
    assert len(log.lines) == 10_000
    (seldom,) = log.logger.filters
    assert isinstance(seldom, Seldom)
    assert len(seldom._often) <= 256


def test_whoever_logs_what_clients_bring_about_is_held_to_say_it_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    for logger in (channel._logger, exchange._logger, service._logger, application._logger, faults._logger):
        monkeypatch.setattr(logger, "filters", [])
    complain_seldom()
    for logger in (channel._logger, exchange._logger, service._logger, application._logger, faults._logger):
        assert [type(one) for one in logger.filters] == [Seldom]
