from __future__ import annotations

import json
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.calls import Command
from engine.commands import table as commands
from engine.commands.grammar import CommandError, show
from engine.commands.keys import Delete, Exists, Ttl
from engine.commands.queues import BQPop, QLen, QPop, QPush
from engine.commands.server import Ping
from engine.commands.table import TABLE, lookup, parse
from engine.commands.values import Condition, Get, Set
from engine.limits import Limits
from engine.replies import Error
from tests.harness.effort import many

LIMITS = Limits(key_bytes_max=8, value_bytes_max=16, tokens_max=12)


def refusal(line: str | list[bytes], limits: Limits = LIMITS) -> CommandError:
    argv = line.encode().split() if isinstance(line, str) else line
    with pytest.raises(CommandError) as caught:
        parse(argv, limits)
    return caught.value


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("SET k v", Set(b"k", b"v")),
        ("set k v", Set(b"k", b"v")),
        ("SeT k v", Set(b"k", b"v")),
        ("SET k v EX 60", Set(b"k", b"v", 60_000)),
        ("SET k v EX60", Set(b"k", b"v", 60_000)),
        ("SET k v ex60", Set(b"k", b"v", 60_000)),
        ("SET k v PX 60", Set(b"k", b"v", 60)),
        ("SET k v PX60", Set(b"k", b"v", 60)),
        ("SET k v EX 007", Set(b"k", b"v", 7_000)),
        ("SET k v PX 1", Set(b"k", b"v", 1)),
        ("SET k v EX 1000000000000", Set(b"k", b"v", 10**15)),
        ("SET k v PX 1000000000000000", Set(b"k", b"v", 10**15)),
        ("SET k v PX 100000000000000", Set(b"k", b"v", 10**14)),
        ("SET k v NX", Set(b"k", b"v", None, Condition.IF_MISSING)),
        ("SET k v XX", Set(b"k", b"v", None, Condition.IF_PRESENT)),
        ("SET k v nx", Set(b"k", b"v", None, Condition.IF_MISSING)),
        ("SET k v EX 60 NX", Set(b"k", b"v", 60_000, Condition.IF_MISSING)),
        ("SET k v NX EX 60", Set(b"k", b"v", 60_000, Condition.IF_MISSING)),
        ("SET k v XX PX 5", Set(b"k", b"v", 5, Condition.IF_PRESENT)),
        ("SET k v px 5 xx", Set(b"k", b"v", 5, Condition.IF_PRESENT)),
        ("SET EX NX", Set(b"EX", b"NX")),
        ("SET k EX60 EX 60", Set(b"k", b"EX60", 60_000)),
        ("GET k", Get(b"k")),
        ("get K", Get(b"K")),
        ("DELETE k", Delete((b"k",))),
        ("DELETE k l k", Delete((b"k", b"l", b"k"))),
        ("DEL k", Delete((b"k",))),
        ("del k l", Delete((b"k", b"l"))),
        ("EXISTS k", Exists((b"k",))),
        ("EXISTS k k l", Exists((b"k", b"k", b"l"))),
        ("QPUSH q v", QPush(b"q", (b"v",))),
        ("QPUSH q v EX 60", QPush(b"q", (b"v", b"EX", b"60"))),
        ("QPOP q", QPop(b"q")),
        ("BQPOP q", BQPop(b"q", None)),
        ("BQPOP q 0", BQPop(b"q", 0)),
        ("BQPOP q 5", BQPop(b"q", 5_000)),
        ("BQPOP q 1.5", BQPop(b"q", 1_500)),
        ("BQPOP q .5", BQPop(b"q", 500)),
        ("BQPOP q 5.", BQPop(b"q", 5_000)),
        ("BQPOP q 16.1", BQPop(b"q", 16_100)),
        ("BQPOP q 0.0001", BQPop(b"q", 1)),
        ("BQPOP q 0.000", BQPop(b"q", 0)),
        ("BQPOP q 1000000000", BQPop(b"q", 10**12)),
        ("BQPOP q TIMEOUT 5", BQPop(b"q", 5_000)),
        ("BQPOP q timeout 0.25", BQPop(b"q", 250)),
        ("QLEN q", QLen(b"q")),
        ("TTL k", Ttl(b"k")),
        ("PING", Ping()),
        ("ping", Ping()),
    ],
)
def test_a_good_line_becomes_its_command(line: str, command: Command) -> None:
    assert parse(line.encode().split(), LIMITS) == command


def exact_ms(seconds: float | Fraction) -> int:
    return math.ceil(Fraction(seconds) * 1000)


TIMEOUTS = st.floats(0, 1e9) | st.floats(0, 1e-3) | st.floats(0, 100).map(lambda number: round(number, 3))


@settings(max_examples=many(500))
@given(TIMEOUTS)
@example(0.1 + 0.2)
@example(1e-05)
@example(5e-324)
@example(-0.0)
@example(16.1)
def test_a_timeout_is_taken_as_programs_print_it_and_part_of_a_millisecond_is_a_whole_one(seconds: float) -> None:
    """By Python, as JSON and as a decimal; by JavaScript; and by Go's %v, %g and %f."""
    text = repr(seconds)
    printed = exact_ms(Fraction(text))  # what is written, not the binary fraction that it stands for
    mantissa, exponent, digits = text.partition("e")
    in_javascript = f"{mantissa.removesuffix('.0')}{exponent}{digits[:1]}{digits[1:].lstrip('0')}"
    with_plus = text.replace("e", "E+").replace("+-", "-")
    for spelled in (text, json.dumps(seconds), str(Decimal(text)), in_javascript, text.upper(), with_plus):
        assert parse([b"BQPOP", b"q", spelled.encode()], LIMITS) == BQPop(b"q", printed)
    for digits in ("%.17g", "%f", "%.20f", "%e", "%.1074f"):
        spelled = digits % seconds
        assert parse([b"BQPOP", b"q", b"TIMEOUT", spelled.encode()], LIMITS) == BQPop(b"q", exact_ms(Fraction(spelled)))


@given(st.from_regex(r"[0-9]{1,12}(\.[0-9]{1,60})?([eE][+-]?[0-9]{1,3})?", fullmatch=True))
@example("0.001" + "0" * 50 + "1")
@example("0.999" + "9" * 50)
@example("1e-400")
def test_a_timeout_may_have_any_number_of_digits_and_is_never_shortened(text: str) -> None:
    exact = Fraction(text)
    if exact <= 10**9:
        assert parse([b"BQPOP", b"q", text.encode()], LIMITS) == BQPop(b"q", exact_ms(exact))
    else:
        assert "from 0 to 1000000000" in refusal([b"BQPOP", b"q", text.encode()]).detail


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("123 SET COMMAND", "unknown command '123', expected one of SET, GET, "),
        ("SETX k v", "unknown command 'SETX'"),
        ("SET", "SET: key is missing, expected SET key value [EX s | PX ms] [NX | XX]"),
        ("SET k", "SET: value is missing"),
        ("GET", "GET: key is missing, expected GET key"),
        ("GET k l", "GET does not take 'l', expected GET key"),
        ("DELETE", "DELETE: key is missing, expected DELETE key [key ...]"),
        ("DEL", "DELETE: key is missing"),
        ("EXISTS", "EXISTS: key is missing"),
        ("QPUSH", "QPUSH: key is missing"),
        ("QPUSH q", "QPUSH: value is missing, expected QPUSH key value [value ...]"),
        ("QPOP", "QPOP: key is missing"),
        ("QPOP q 5", "QPOP does not take '5'"),
        ("BQPOP", "BQPOP: key is missing, expected BQPOP key [timeout]"),
        ("QLEN", "QLEN: key is missing"),
        ("QLEN q r", "QLEN does not take 'r'"),
        ("TTL", "TTL: key is missing"),
        ("TTL k l", "TTL does not take 'l'"),
        ("PING PONG", "PING does not take 'PONG', expected PING"),
        ("SET k v EX", "SET: EX needs a word behind it, EX s"),
        ("SET k v NX PX", "SET: PX needs a word behind it, PX ms"),
        ("SET k v EX 0", "EX takes a whole number of seconds from 1 to 1000000000000, not '0'"),
        ("SET k v EX0", "EX takes a whole number of seconds from 1 to 1000000000000, not '0'"),
        ("SET k v EX -1", "EX takes a whole number of seconds from 1 to 1000000000000, not '-1'"),
        ("SET k v EX +1", "EX takes a whole number"),
        ("SET k v EX 1.5", "EX takes a whole number of seconds from 1 to 1000000000000, not '1.5'"),
        ("SET k v EX 1e3", "EX takes a whole number"),
        ("SET k v EX 1_0", "EX takes a whole number"),
        ("SET k v EX x", "EX takes a whole number"),
        ("SET k v EX NX", "EX takes a whole number"),
        ("SET k v EX 1000000000001", "EX takes a whole number"),
        ("SET k v EX 999999999999999", "EX takes a whole number"),
        ("SET k v EX 123456789012345678901234567890", "EX takes a whole number"),
        ("SET k v PX 0", "PX takes a whole number of milliseconds from 1 to 1000000000000000, not '0'"),
        ("SET k v PX 1.5", "PX takes a whole number of milliseconds from 1 to 1000000000000000, not '1.5'"),
        ("SET k v PX 9999999999999999", "PX takes a whole number"),
        ("SET k v EX1.5", "SET does not take 'EX1.5'"),
        ("SET k v EX-5", "SET does not take 'EX-5'"),
        ("SET k v 60", "SET does not take '60'"),
        ("SET k v NX60", "SET does not take 'NX60'"),
        ("SET k v EX 1 EX 2", "SET takes EX or PX at most once"),
        ("SET k v EX1 EX1", "SET takes EX or PX at most once"),
        ("SET k v EX 1 PX 2", "SET takes EX or PX at most once"),
        ("SET k v PX 1 NX EX 2", "SET takes EX or PX at most once"),
        ("SET k v NX NX", "SET takes NX or XX at most once"),
        ("SET k v NX XX", "SET takes NX or XX at most once"),
        ("SET k v XX EX 1 NX", "SET takes NX or XX at most once"),
        ("SET k v w", "SET does not take 'w'"),
        ("BQPOP q -1", "TIMEOUT is negative: '-1'; 0 answers at once, and left out it waits"),
        ("BQPOP q TIMEOUT -0.5", "TIMEOUT is negative: '-0.5'; 0 answers at once, and left out it waits"),
        ("BQPOP q -1e-400", "TIMEOUT is negative"),
        ("BQPOP q x", "TIMEOUT takes a number of seconds from 0 to 1000000000, such as 0.5, not 'x'"),
        *(
            (f"BQPOP q {word}", "TIMEOUT takes a number of seconds")
            for word in (".", "1e", "e5", "inf", "nan", "Infinity", "-inf", "+Inf", "0x1p-2", "1_0", "1.2.3", "1,5")
        ),
        *(
            (f"BQPOP q {word}", "TIMEOUT takes a number of seconds")
            for word in ("1000000000.1", "1e10", "1e400", "1e99999999999999999999", "1" * 4097)
        ),
        ("BQPOP q TIMEOUT", "BQPOP: TIMEOUT needs a word behind it, TIMEOUT timeout"),
        ("BQPOP q 1 2", "BQPOP takes TIMEOUT at most once"),
        ("BQPOP q 1 TIMEOUT 2", "BQPOP takes TIMEOUT at most once"),
    ],
)
def test_a_bad_line_is_refused_with_what_was_expected(line: str, detail: str) -> None:
    error = refusal(line)
    assert error.error is Error.INVALID_COMMAND
    assert error.detail.startswith(detail)


def test_nothing_at_all_is_refused() -> None:
    assert refusal([]).detail == "the command is empty"
    assert refusal([b""]).detail.startswith("unknown command ''")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("GET 123456789", "the key has 9 bytes, at most 8 are taken (--max-key)"),
        ("DEL a 123456789", "the key has 9 bytes"),
        ("QPUSH 123456789 v", "the key has 9 bytes"),
        ("SET k 12345678901234567", "the value has 17 bytes, at most 16 are taken (--max-value)"),
        ("QPUSH q v 12345678901234567", "the value has 17 bytes"),
        ("QPUSH q 1 2 3 4 5 6 7 8 9 10 11", "a command has at most 12 words"),
    ],
)
def test_what_is_over_its_limit_is_too_large(line: str, detail: str) -> None:
    error = refusal(line)
    assert error.error is Error.TOO_LARGE
    assert error.detail.startswith(detail)


def test_what_is_just_at_its_limit_is_taken() -> None:
    assert parse([b"SET", b"12345678", b"1234567890123456"], LIMITS) == Set(b"12345678", b"1234567890123456")
    assert isinstance(parse([b"QPUSH", b"q", *[b"v"] * 10], LIMITS), QPush)


def test_keys_and_values_are_any_bytes() -> None:
    assert parse([b"SET", b"\xff\x00", b"\r\n \x80"], LIMITS) == Set(b"\xff\x00", b"\r\n \x80")
    assert parse([b"SET", b"", b""], LIMITS) == Set(b"", b"")


def test_letters_beyond_ascii_are_not_folded_into_a_name() -> None:
    assert lookup(b"\xc5\xbfet") is None
    assert lookup(b"get") is lookup(b"GET")


@pytest.mark.parametrize(
    ("name", "usage"),
    [
        ("SET", "SET key value [EX s | PX ms] [NX | XX]"),
        ("GET", "GET key"),
        ("DELETE", "DELETE key [key ...]"),
        ("DEL", "DELETE key [key ...]"),
        ("EXISTS", "EXISTS key [key ...]"),
        ("QPUSH", "QPUSH key value [value ...]"),
        ("QPOP", "QPOP key"),
        ("BQPOP", "BQPOP key [timeout]"),
        ("QLEN", "QLEN key"),
        ("TTL", "TTL key"),
        ("PING", "PING"),
    ],
)
def test_the_usage_reads_as_documentation_writes_it(name: str, usage: str) -> None:
    row = lookup(name.encode())
    assert row is not None
    assert row.usage == usage


def test_every_row_of_the_table_builds_its_command() -> None:
    for row in TABLE:
        words = [b"w" for _ in row.parameters]
        assert type(parse([row.name.encode(), *words], LIMITS)) is row.command
        for option in row.options:
            argument = [] if option.argument is None else [b"1"]
            command = parse([row.name.encode(), *words, option.name.encode(), *argument], LIMITS)
            assert getattr(command, option.fills) is not None
        assert not any(parameter.many for parameter in row.parameters[:-1]), "only the last may take many words"


def test_a_message_shows_words_short_and_without_control_characters() -> None:
    assert show(b"a\x1b[31m\n\x00\xff") == repr("a\x1b[31m\n\x00\\xff")
    assert "\x1b" not in show(b"\x1b")
    assert len(show(b"\xe2\x82\xac" * 1_000_000)) == 45


WORDS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([word for row in TABLE for word in (row.name.encode(), row.name.lower().encode())]),
    st.sampled_from([b"EX", b"PX", b"NX", b"XX", b"EX60", b"px1", b"TIMEOUT", b"timeout5", b"60", b"0", b"-1", b"1.5"]),
    st.lists(st.sampled_from([b"0", b"7", b".", b"-", b"e", b"_"]), max_size=20).map(b"".join),
)


@settings(max_examples=many(300))
@given(argv=st.lists(WORDS, max_size=14))
def test_any_words_are_a_command_or_a_command_error(argv: list[bytes]) -> None:
    try:
        command: Command | CommandError = parse(argv, LIMITS)
    except CommandError as error:
        command = error
    if isinstance(command, CommandError):
        assert command.error in (Error.INVALID_COMMAND, Error.TOO_LARGE)
        assert command.detail.isprintable()
        assert 0 < len(command.detail) < 300
    else:
        row = lookup(argv[0])
        assert row is not None
        assert type(command) is row.command


@settings(max_examples=many(300))
@given(
    argv=st.builds(
        lambda name, words: [name, *words], st.sampled_from(list(commands._BY_NAME)), st.lists(WORDS, max_size=3)
    ),
    limits=st.sampled_from([LIMITS, Limits(tokens_max=1), Limits(tokens_max=2)]),
)
def test_a_plain_command_is_what_the_rows_of_the_table_make_of_it(argv: list[bytes], limits: Limits) -> None:
    command = commands.plain(argv, limits)
    assert command is None or command == commands._parse(argv, limits)


def test_most_rows_have_plain_commands() -> None:
    plain = [row.name for row in TABLE if commands.plain([row.name.encode(), *[b"w"] * len(row.parameters)], LIMITS)]
    assert plain == [row.name for row in TABLE if row.parameters]


def test_commands_are_equal_by_name_and_fields_and_can_be_members_of_sets() -> None:
    get, other = Get(b"k"), Ttl(b"k")
    assert get == Get(b"k")
    assert get != other  # type: ignore[comparison-overlap]  # that is what it says
    assert len({Get(b"k"), Get(b"k"), Ttl(b"k"), Get(b"l")}) == 3
