"""Lines to argv (api/dialects/line.py): words, quotes, escapes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import answers, cut_json
from api.dialects.line import split_line
from api.dialects.request import Dialect, Request
from engine.limits import Limits
from engine.replies import Error, Failure
from tests.api.dialects.spelling import line, parse_body


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("SET hello world", [b"SET", b"hello", b"world"]),
        ("  SET   a  b ", [b"SET", b"a", b"b"]),
        ("", []),
        ("   ", []),
        ("SET k ''", [b"SET", b"k", b""]),
        ('SET k ""', [b"SET", b"k", b""]),
        ('SET k "a b"', [b"SET", b"k", b"a b"]),
        ("SET k 'a b'", [b"SET", b"k", b"a b"]),
        ('SET k "a b" EX 60', [b"SET", b"k", b"a b", b"EX", b"60"]),
        (r'SET k "\n\r\t\b\a"', [b"SET", b"k", b"\n\r\t\b\a"]),
        (r'SET k "\x00\xfF\x41B"', [b"SET", b"k", b"\x00\xffAB"]),
        (r'SET k "\xg1\x4"', [b"SET", b"k", b"xg1x4"]),
        (r'SET k "\"\\\q\é"', [b"SET", b"k", '"\\qé'.encode()]),
        (r"SET k 'it\'s' '\n\\ '", [b"SET", b"k", b"it's", b"\\n\\\\ "]),
        (r"""SET k '"' "'" """, [b"SET", b"k", b'"', b"'"]),
        ('SET k it\'s a"b"', [b"SET", b"k", b"it's", b'a"b"']),
        (r"SET k \n\x41", [b"SET", b"k", rb"\n\x41"]),
        ("SET k a\tb\nc", [b"SET", b"k", b"a\tb\nc"]),
        ("SET k\u00a0 v\u3000w", [b"SET", "k\u00a0".encode(), "v\u3000w".encode()]),
        ("SET ключ 😀 'ü €'", [b"SET", "ключ".encode(), "😀".encode(), "ü €".encode()]),
        ("SET k \x00", [b"SET", b"k", b"\x00"]),
    ],
)
def test_a_line_is_split_as_redis_cli_splits_it_but_at_spaces_only(text: str, argv: list[bytes]) -> None:
    assert line(text) == Request(argv, Dialect.LINE)


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ('SET k "abc', "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ("SET k 'abc", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        (r'SET k "abc\"', "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('SET k "abc' + "\\", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        (r"SET k 'abc\'", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('"', "unbalanced quotes: the word that starts at byte 0 has no closing quote"),
        ("SET k ' \"", "unbalanced quotes: the word that starts at byte 6 has no closing quote"),
        ('SET k "a"b', 'the closing quote at byte 8 must be followed by a space; write a quote within the word as \\"'),
        ("SET 'k'\tv", "the closing quote at byte 6 must be followed by a space; write a quote within the word as \\'"),
        ("SET k ''''", "the closing quote at byte 7 must be followed by a space; write a quote within the word as \\'"),
    ],
)
def test_quotes_that_do_not_match_are_an_invalid_command(text: str, detail: str) -> None:
    request = line(text)
    assert request == Request([], Dialect.LINE, None, Failure(Error.INVALID_COMMAND, detail))
    assert request.failure is not None
    assert json.loads(answers.answer(request, request.failure).body) == {"error": "invalid command", "detail": detail}


CUT = [
    ('QPUSH jobs {"id": 1}', '{"id": 1}'),
    ('QPUSH jobs {"id":1} {"id": 2}', '{"id": 2}'),
    ('QPUSH jobs {"a": "b c"} x', '{"a": "b c"}'),
    ('QPUSH jobs {"a": "b  c", "d": [1,  2]}', '{"a": "b  c", "d": [1,  2]}'),
    ("QPUSH jobs [1, 2]", "[1, 2]"),
    ("QPUSH jobs [ ]", "[ ]"),
    ("QPUSH jobs { }", "{ }"),
    ("SET [1, 2]", "[1, 2]"),
    ('SET k {"id": 1} EX 60', '{"id": 1}'),
    ('SET "a b" {"id": 1}', '{"id": 1}'),
    ('SET k {"é": "😀 ü"}', '{"é": "😀 ü"}'),
    ('SET k {"it": "it\'s 5"}', '{"it": "it\'s 5"}'),
    ('QPUSH q {"a":\n{"b":\t[{}, null]}}', '{"a":\n{"b":\t[{}, null]}}'),
    ('QPUSH q {"a" [1, 2]', "[1, 2]"),
    ("\ufeffQPUSH q [1, 2]", "[1, 2]"),
    ("QPUSH q " + "x" * 70_000 + ' {"id": 1}', '{"id": 1}'),
    ("QPUSH q [" + "1, " * 40_000 + "2] x", "[" + "1, " * 40_000 + "2]"),
]


@pytest.mark.parametrize(("text", "value"), CUT, ids=range(len(CUT)))
def test_json_that_the_spaces_in_it_would_cut_is_refused_with_the_quotes_that_it_needs(text: str, value: str) -> None:
    """`QPUSH jobs {"id": 1}` pushed two halves."""
    request = line(text)
    assert request.failure is not None
    assert request.failure.error is Error.INVALID_COMMAND
    quoted = value.replace("'", "\\'")
    if len(value) <= 80:
        assert request.failure.detail == (
            f"{value} is one JSON value, but a line is split at its spaces: put it in single quotes, '{quoted}',"
            " or send it as a string in the member 'value'"
        )
        assert line(text.replace(value, f"'{quoted}'")).argv.count(value.encode()) == 1
    else:
        assert len(request.failure.detail) < 400


@pytest.mark.parametrize(
    "text",
    [
        'QPUSH jobs {"id":1} {"id":2}',
        "QPUSH jobs [1,2] [3]",
        "QPUSH jobs [1 2]",
        "SET note [see below]",
        'SET k {"a": 1}x',
        'SET k x{"a": 1}',
        "SET k { NX",
        "SET k {'a': 1}",
        "SET k {a: 1}",
        "SET k [NaN, 1]",
        'SET k {"a": 1',
        "GET {user1}:name",
        "SET {user1}:name [1,2",
    ],
)
def test_words_that_are_no_json_together_are_words(text: str) -> None:
    assert line(text) == Request([word.encode() for word in text.split(" ")], Dialect.LINE)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_a_job_in_json_is_one_value_or_refused_and_never_two(job: object) -> None:
    for text in (json.dumps(job), json.dumps(job, ensure_ascii=False), json.dumps(job, indent=1)):
        for spelled in (text, f"{text} EX", "'" + text.replace("'", "\\'") + "'"):
            request = line(f"QPUSH jobs {spelled}")
            if request.failure is None and isinstance(job, dict | list):
                assert request.argv[2] == text.encode()
    in_quotes = line("QPUSH jobs '" + json.dumps(job).replace("'", "\\'") + "'")
    assert in_quotes.argv == [b"QPUSH", b"jobs", json.dumps(job).encode()]


def test_the_search_for_json_in_a_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    scan = cut_json._scan

    def noting(text: str, at: int) -> tuple[int, int]:
        found = scan(text, at)
        read.append(found[1] - at)
        return found

    monkeypatch.setattr(cut_json, "_scan", noting)
    text = "QPUSH q " + "[ " * 500
    assert len(line(text).argv) == 502
    assert sum(read) <= 5 * len(text)


def test_a_quoted_word_of_many_steps_is_put_together_right() -> None:
    for unit, value in ((r"\n", b"\n"), (r"a\x41", b"aA"), ("é ", "é ".encode()), (r"\\", b"\\")):
        for shift in range(3):
            assert line(f'SET k "{"x" * shift}{unit * 9000}"').argv[2] == b"x" * shift + value * 9000
    for shift in range(3):
        text = "x" * shift + r"\' \n" * 9000
        assert line(f"SET k '{text}'").argv[2] == text.replace("\\'", "'").encode()


def test_a_line_that_is_long_is_split_like_a_short_one() -> None:
    words = [b"QPUSH", b"q", *(b"%d" % number for number in range(9_999, 30_000))]
    text = (b" " * 70_000).join(words[:5]) + b" " + b"   ".join(words[5:]) + b" "
    assert split_line(text, 65_536) == words
    assert split_line(b" " * 200_000, 65_536) == []


def test_a_line_of_too_many_words_is_refused_where_the_count_is_passed() -> None:
    body = json.dumps({"command": "a " * 40_000}).encode()
    request = parse_body(body, Limits(tokens_max=100))
    assert request.failure == Failure(Error.TOO_LARGE, "a command has at most 100 words")
    assert answers.answer(request, request.failure).status == 413


# A word as a person would quote it: every way must give the same bytes.
def double_quoted(word: bytes) -> str:
    return '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'


def redis_quoted(word: bytes) -> bytes:
    return b'"' + word.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_any_words_round_trip_through_escapes(words: list[bytes]) -> None:
    assert line(" ".join(double_quoted(word) for word in words)).argv == words
    assert split_line(b"  ".join(redis_quoted(word) for word in words), 10) == words


no_space = st.characters(codec="utf-8", exclude_characters=" ")
no_quote = st.characters(codec="utf-8", exclude_characters=" \"'")


@given(st.lists(st.builds(str.__add__, no_quote, st.text(no_space)), max_size=5))
def test_any_bare_words_round_trip(words: list[str]) -> None:
    encoded = [word.encode() for word in words]
    assert line(" ".join(words)).argv == encoded
    assert split_line(" ".join(words).encode() + b" '' ", 10) == [*encoded, b""]
