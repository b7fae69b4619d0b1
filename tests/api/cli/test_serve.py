from __future__ import annotations

import contextlib
import os
import pty
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from api.cli import options, serve
from api.cli.main import main
from api.server import progress
from api.server.exit_codes import ExitCode
from api.server.progress import ReplayProgress, ReplayStopped, Starting
from api.server.settings import ServerSettings
from engine.embedded.committer import FsyncPolicy
from engine.limits import Limits
from engine.redis.endpoint import Address, Endpoint


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerSettings]:
    """What `serve` is called with; nothing is served."""
    calls: list[ServerSettings] = []

    def serving(settings: ServerSettings) -> ExitCode:
        calls.append(settings)
        return ExitCode.OK

    monkeypatch.setattr(serve, "run", serving)
    return calls


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["serve", *arguments], env=environment)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("1", 1), ("4096", 4096), ("4KiB", 4096), ("4k", 4096), ("4 kb", 4096), ("16MiB", 1 << 24), ("2G", 1 << 31)],
)
def test_a_size_is_a_number_with_or_without_a_unit(text: str, size_bytes: int) -> None:
    assert serve.size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5M", "1T", "MiB", "1 M M", "٣"])
def test_anything_else_is_no_size(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a size"):
        serve.size(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8080", "127.0.0.1", 8080), ("localhost:0", "localhost", 0), ("[::1]:80", "::1", 80)],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert options.address(text) == (host, port)


@pytest.mark.parametrize("text", ["8080", ":8080", "localhost", "localhost:", "::1:80", "h:65536", "h:-1", "h:٣"])
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.address(text)


def test_without_options_the_defaults_are_those_of_the_contract(served: list[ServerSettings]) -> None:
    assert run()[0] == 0
    assert served == [ServerSettings(Path("data"), "127.0.0.1", 8080, FsyncPolicy.ALWAYS, None, False, (), Limits())]


def test_every_option_is_also_an_environment_variable(served: list[ServerSettings]) -> None:
    found = [parameter for parameter in serve.serve_command.params if isinstance(parameter, click.Option)]
    assert len(found) == 10 + len(serve._LIMIT_OPTIONS)
    for option in found:
        word = option.opts[0].removeprefix("--").replace("-", "_").upper()
        assert option.envvar == f"HOLDFAST_{word}"
    assert run(HOLDFAST_BIND="[::1]:9", HOLDFAST_MAX_MEMORY="2GiB", HOLDFAST_FSYNC="never")[0] == 0
    assert (served[0].host, served[0].port, served[0].fsync) == ("::1", 9, FsyncPolicy.NEVER)
    assert served[0].limits == Limits(memory_bytes_max=2 << 30)


def test_with_an_engine_the_data_are_in_redis(served: list[ServerSettings]) -> None:
    assert run("--engine", "redis://:secret@a:1,b", "--min-replicas", "2")[0] == 0
    assert run(HOLDFAST_ENGINE="redis://:secret@a:1,b", HOLDFAST_MIN_REPLICAS="1")[0] == 0
    where = Endpoint((Address("a", 1), Address("b", 6379)), password="secret")
    assert [(settings.engine, settings.min_replicas) for settings in served] == [(where, 2), (where, 1)]


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--data", "d", "Redis keeps the data"),
        ("--fsync", "always", "appendfsync"),
        ("--segment-size", "1MiB", "no log"),
        ("--max-memory", "1GiB", "maxmemory"),
    ],
)
def test_what_only_the_embedded_engine_has_is_refused_with_another(
    served: list[ServerSettings], option: str, value: str, why: str
) -> None:
    """Also when it says what is the default: who gives it expects something of it."""
    variable = "HOLDFAST_" + option.removeprefix("--").replace("-", "_").upper()
    given = run("--engine", "redis://a", option, value)
    in_environment = run("--engine", "redis://a", **{variable: value})
    for (code, output), name in ((given, option), (in_environment, variable)):
        assert code == 2
        assert f"Invalid value for {name}: not with --engine: " in output
        assert why in output
    assert served == []


def test_replicas_are_refused_without_an_engine_that_has_some(served: list[ServerSettings]) -> None:
    code, output = run("--min-replicas", "1")
    assert code == 2
    assert "only with --engine" in output
    assert served == []


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "redis://",
            "http://:secret@a",
            "a:6379",
            "redis://:secret@a:0",
            "redis://:secret@a:x",
            "redis://s:secret@::1",
        ),
        *(
            "redis://secret@a",
            "redis://:secret@a/x",
            "redis://:secret@a?db=1",
            "redis://[:secret@a",
            "redis://:secret@a,,b",
        ),
        *("redis://u:secret/x@a", "redis://u:1/secret@a", "redis://u:x#secret@a", "redis://u:x?secret@a"),
    ],
)
def test_a_bad_url_exits_2_without_showing_its_password(served: list[ServerSettings], url: str) -> None:
    for code, output in (run("--engine", url), run(HOLDFAST_ENGINE=url or "x")):
        assert code == 2
        assert "--engine" in output
        assert "secret" not in output
    assert served == []


def test_every_limit_is_an_option() -> None:
    assert {field for _, field, _, _, _ in serve._LIMIT_OPTIONS} == set(Limits.__dataclass_fields__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", ""],
        ["--max-body", "1G"],
        ["--max-depth", "0"],
        ["--fsync", "sometimes"],
        ["--bind", "x"],
        ["--segment-size", "1K"],
    ],
)
def test_a_bad_option_exits_2_and_serves_nothing(served: list[ServerSettings], arguments: list[str]) -> None:
    code, output = run(*arguments)
    assert code == 2
    assert arguments[0] in output
    assert served == []


def test_an_empty_token_variable_is_refused_unless_a_token_is_given(served: list[ServerSettings]) -> None:
    assert run(HOLDFAST_TOKEN="")[0] == 2
    assert run("--token", "secret", HOLDFAST_TOKEN="")[0] == 0
    assert [settings.token for settings in served] == ["secret"]


def test_a_short_replay_shows_nothing_and_a_stopped_one_ends(capsys: pytest.CaptureFixture[str]) -> None:
    stopped = False
    with ReplayProgress(lambda: stopped, Starting()) as bar:
        bar(10, 100)
        stopped = True
        with pytest.raises(ReplayStopped):
            bar(20, 100)
    assert capsys.readouterr().err == ""


def test_a_long_replay_draws_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_S", 0.0)
    monkeypatch.setattr(progress, "REDRAW_S", 0.0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with ReplayProgress(lambda: False, Starting()) as bar:
            bar(50, 100)
            bar(100, 100)
    drawn = ""
    with contextlib.suppress(OSError):  # EIO: all of it has been read
        while piece := os.read(ours, 65_536):
            drawn += piece.decode()
    os.close(ours)
    assert "replaying" in drawn
    assert "100%" in drawn
