from __future__ import annotations

import contextlib
import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from api.cli import checkpoint, options, serve
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
    """What `serve` is called with; nothing is served, nor logged."""
    calls: list[ServerSettings] = []

    def serving(settings: ServerSettings) -> ExitCode:
        calls.append(settings)
        return ExitCode.OK

    monkeypatch.setattr(serve, "run", serving)
    monkeypatch.setattr(serve, "start_logging", lambda: None)
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


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("8080", "is not HOST:PORT, like 127.0.0.1:8080 or [::1]:8080"),
        ("localhost", "is not HOST:PORT"),
        ("localhost:", "is not HOST:PORT"),
        ("h:65536", "is not HOST:PORT"),
        ("h:-1", "is not HOST:PORT"),
        ("h:٣", "is not HOST:PORT"),
        ("h:" + "9" * 5_000, "is not HOST:PORT"),
        ("[]:80", "is not HOST:PORT"),
        ("[h]:80", "is not HOST:PORT"),
        ("[127.0.0.1]:80", "is not HOST:PORT"),
        ("a..b:80", "is not HOST:PORT"),
        ("a b:80", "is not HOST:PORT"),
        ("x" * 64 + ":80", "is not HOST:PORT"),
        ("\uff48\uff4f:80", "is not HOST:PORT"),
        ("\udcff:80", "is not HOST:PORT"),
        (":8080", "names no host; every address is 0.0.0.0:8080, or [::]:8080"),
        ("*:8080", "names no host; every address is 0.0.0.0:8080, or [::]:8080"),
        ("::1:80", "an IPv6 address stands in brackets, like [::1]:8080"),
        ("::1", "an IPv6 address stands in brackets, like [::1]:8080"),
        ("2001:db8::1", "an IPv6 address stands in brackets, like [::1]:8080"),
        ("http://localhost:8080", "is not HOST:PORT; leave the scheme and the path out"),
    ],
)
def test_anything_else_is_no_address_and_what_was_meant_is_said(text: str, advice: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        options.address(text)
    assert advice in caught.value.message
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 300


def test_without_options_the_defaults_are_those_of_the_contract(served: list[ServerSettings]) -> None:
    assert run()[0] == 0
    assert served == [ServerSettings(Path("data"), "127.0.0.1", 8080, FsyncPolicy.ALWAYS, None, False, (), Limits())]


def test_every_option_is_also_an_environment_variable(served: list[ServerSettings]) -> None:
    found = [parameter for parameter in serve.serve_command.params if isinstance(parameter, click.Option)]
    assert len(found) == 11 + len(serve._LIMIT_OPTIONS)
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
        ["--data", ""],
        ["--token", "secret\n"],
        ["--allow-host", "a,b"],
        ["--idle-timeout", "0"],
        ["--max-tokens", "15"],
        ["--max-depth", "3"],
        ["--max-memory", "999999999999999G"],
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


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("--max-value 16MiB", "--max-value: 16MiB is not less than --max-body, 16MiB: no request can hold it; lower"),
        ("--max-value 2M --max-body 1M", "--max-value: 2MiB is not less than --max-body, 1MiB"),
        ("--max-key 20M", "--max-key: 20MiB is not less than --max-body, 16MiB"),
        ("--max-memory 10", "--max-memory: 10 is less than --max-key, 4KiB: one of that size never fits; raise this"),
        ("--max-memory 512K", "--max-memory: 512KiB is less than --max-value, 1MiB"),
        ("--max-bodies 8M", "--max-bodies: 8MiB is less than --max-body, 16MiB"),
        ("--max-answer 512K", "--max-answer: 512KiB is less than --max-value, 1MiB"),
        ("--max-value 32M --max-body 64M --max-answer 16M", "--max-answer: 16MiB is less than --max-value, 32MiB"),
    ],
)
def test_limits_of_which_one_makes_another_useless_are_refused(
    served: list[ServerSettings], given: str, why: str
) -> None:
    words = given.split()
    in_environment = {
        "HOLDFAST_" + name.removeprefix("--").replace("-", "_").upper(): value
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    for code, output in (run(*words), run(**in_environment)):
        assert code == 2
        assert f"Invalid value for {why}" in output
    assert served == []


def test_defaults_yield_to_what_is_given(served: list[ServerSettings]) -> None:
    assert run("--max-body", "64KiB")[0] == 0
    assert run("--max-value", "32MiB", "--max-body", "64MiB")[0] == 0
    assert [settings.limits.answer_bytes_max for settings in served] == [16 << 20, 32 << 20]


def test_idle_connections_are_kept_as_long_as_was_said(served: list[ServerSettings]) -> None:
    assert run("--idle-timeout", "620")[0] == 0
    assert run()[0] == 0
    assert [settings.idle_timeout_s for settings in served] == [620, 75]


def commands(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*words, name))
    else:
        yield words, command


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_an_option_that_takes_one_value_is_not_taken_twice(
    served: list[ServerSettings], words: tuple[str, ...]
) -> None:
    """The first would be lost without a word."""
    found = [option for option in COMMANDS[words].params if isinstance(option, click.Option)]
    single = [option.opts[0] for option in found if not option.is_flag and not option.multiple]
    assert bool(single) == (words[0] not in ("import", "backup") and words[-1] not in ("verify", "repair"))
    for name in single:
        result = CliRunner().invoke(main, [*words, name, "1", f"{name}=2"])
        assert (result.exit_code, f"Error: {name} takes one value, and was given 2\n" in result.stderr) == (2, True)
    assert served == []


def test_several_names_may_be_allowed(served: list[ServerSettings]) -> None:
    assert run("--allow-host", "a", "--allow-host", "*.b")[0] == 0
    assert run(HOLDFAST_ALLOW_HOST="a *.b")[0] == 0
    assert [settings.allowed_hosts for settings in served] == [("a", "*.b")] * 2


@pytest.mark.parametrize("name", ["HOLDFAST_DATA", "HOLDFAST_ENGINE", "HOLDFAST_TOKEN"])
def test_a_variable_that_decides_much_is_not_empty(served: list[ServerSettings], name: str) -> None:
    code, output = run(**{name: ""})
    assert (code, f"Error: {name} is set, but empty: give it a value, or unset it" in output) == (2, True)
    assert served == []


def test_variables_without_effect_are_named_with_what_was_meant(
    served: list[ServerSettings], caplog: pytest.LogCaptureFixture
) -> None:
    """Values may be secrets, and are not shown. What Kubernetes sets for a service of our name is none of ours."""
    code, output = run(
        HOLDFAST_MAX_MEMROY="secret",
        HOLDFAST_COLOUR="secret",
        HOLDFAST_MAX_VALUE="",
        HOLDFAST_PORT="tcp://10.0.0.1:80",
        HOLDFAST_PORT_80_TCP_ADDR="10.0.0.1",
        HOLDFAST_SERVICE_HOST="10.0.0.1",
        HOLDFAST_SERVICE_PORT_HTTP="80",
        HOLDFAST_MAX_KEY="1KiB",
    )
    assert code == 0, output
    ours = {name for name in os.environ if name.startswith("HOLDFAST_")}
    found = [line for line in caplog.messages if not any(line.startswith(name) for name in ours)]
    assert found == [
        "HOLDFAST_COLOUR is no option of this command and has no effect",
        "HOLDFAST_MAX_MEMROY is no option of this command and has no effect; HOLDFAST_MAX_MEMORY is one",
        "HOLDFAST_MAX_VALUE is set, but empty: it has no effect",
    ]
    assert len(served) == 1


ODD = [
    "",
    " ",
    "\udcff",
    "\uff46\uff55\uff4c\uff4c",
    "a\nb",
    "-1",
    "--",
    "9" * 5_000,
    "x" * 70_000,
    "\x1b[31m",
    "/",
    "redis://",
]
"""Texts that some option or other may trip over; all can be arguments of a process."""

PLACES = {"verify": ["d"], "dump": ["d"], "repair": ["d"], "backup": ["d", "c"], "export": ["d"], "import": ["c", "f"]}


def odd_lines(words: tuple[str, ...]) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Command lines and environments with an odd text in each place that takes one."""
    places = PLACES.get(words[-1], [])
    arguments = [one for one in COMMANDS[words].params if isinstance(one, click.Argument)]
    for odd in ODD:
        for place in range(len(arguments)):
            yield [*words, "--", *places[:place], odd, *places[place + 1 :]], {}
        for option in COMMANDS[words].params:
            if isinstance(option, click.Option) and not option.is_flag:
                yield [*words, *places, option.opts[0], odd], {}
            if isinstance(option.envvar, str):
                yield [*words, *places], {option.envvar: odd}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_text_in_no_place_of_a_command_line_is_a_traceback(
    served: list[ServerSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "f").touch()
    monkeypatch.setattr(checkpoint, "CONNECT_WITHIN_S", 0.1)
    monkeypatch.setenv("HOLDFAST_BIND", "127.0.0.1:1")
    for line, environment in odd_lines(words):
        result = CliRunner().invoke(main, line, env=environment)
        assert result.exit_code in (0, 1, 2), (line, result.output)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
