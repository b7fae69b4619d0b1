"""Both readers of `api.dialects.json_body`, held to RFC 8259, to each other and to the stdlib's `json`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dialects import json_body
from api.dialects.json_body import BadRequest, Json, Number
from engine.limits import Limits

LIMITS = Limits()


def read_quickly(body: bytes, limits: Limits) -> Json:
    """The C scanner, and the reader in steps for what it does not take: as small bodies are read."""
    try:
        if len(body) <= limits.body_bytes_max:
            value, strings = json_body.scan(body)
            json_body.check_strings(value, strings)
            return json_body.as_bytes(value, limits.json_depth_max)
    except (ValueError, RecursionError):
        pass
    return json_body.parse_in_steps(body, limits)


READERS = [read_quickly, json_body.parse_in_steps]
Reader = Callable[[bytes, Limits], Json]

# The cases of JSONTestSuite (y_, n_, i_) as they stand inside `{"command": ...}`.
ACCEPTED: dict[str, tuple[bytes, Json]] = {
    "array_empty": (b"[]", []),
    "array_null": (b"[null]", [None]),
    "array_false": (b"[false]", [False]),
    "array_heterogeneous": (b'[null, 1, "1", {}]', [None, Number(b"1"), b"1", {}]),
    "array_with_spaces": (b" [ 1 , 2 ]\t\r\n", [Number(b"1"), Number(b"2")]),
    "arrays_with_nothing_but_space": (b"[\n\t \r]", []),
    "object_empty": (b"{}", {}),
    "object_empty_key": (b'{"":0}', {b"": Number(b"0")}),
    "object_with_newlines": (b'{\n"a": "b"\n}', {b"a": b"b"}),
    "object_escaped_null_in_key": (b'{"foo\\u0000bar": 42}', {b"foo\x00bar": Number(b"42")}),
    "object_string_unicode": (b'{"title":"\\u041f"}', {b"title": "П".encode()}),
    "number": (b"123e65", Number(b"123e65")),
    "number_0e+1": (b"0e+1", Number(b"0e+1")),
    "number_0e1": (b"0e1", Number(b"0e1")),
    "number_E_minus": (b"1E-2", Number(b"1E-2")),
    "number_minus_zero": (b"-0", Number(b"-0")),
    "number_minus_one": (b"-1", Number(b"-1")),
    "number_fraction_exponent": (b"123.456e78", Number(b"123.456e78")),
    "number_fraction_stays": (b"1.0", Number(b"1.0")),
    "number_close_to_zero": (b"-0." + b"0" * 70 + b"1", Number(b"-0." + b"0" * 70 + b"1")),
    "string_simple_escapes": (b'"\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\/\b\f\n\r\t'),
    "string_surrogate_pair": (b'"\\ud83d\\ude39\\uD83D\\uDC8D"', "😹💍".encode()),
    "string_null_escape": (b'"\\u0000"', b"\x00"),
    "string_escaped_noncharacter": (b'"\\uFFFF\\uFDD0"', "\uffff\ufdd0".encode()),
    "string_last_pair_escaped": (b'"\\uDBFF\\uDFFE"', "\U0010fffe".encode()),
    "string_utf8": ('"€𝄞 \u2028\u2029"'.encode(), "€𝄞 \u2028\u2029".encode()),
    "string_del_character": (b'"\x7f"', b"\x7f"),
    "string_double_escape_a": (b'"\\\\a\\\\u0041"', b"\\a\\u0041"),
    "string_nbsp_uescaped": (b'"new\\u00A0line"', "new\u00a0line".encode()),
    "string_in_latin1_range": ('"é"'.encode(), "é".encode()),
    "string_noncharacter_in_utf8": ('"\U0010ffff"'.encode(), "\U0010ffff".encode()),
    "literals": (b"[true,false,null]", [True, False, None]),
}

REFUSED: dict[str, bytes] = {
    "array_1_true_without_comma": b"[1 true]",
    "array_colon_instead_of_comma": b'["": 1]',
    "array_comma_and_number": b"[,1]",
    "array_double_comma": b"[1,,2]",
    "array_extra_comma": b'["",]',
    "array_extra_close": b'["x"]]',
    "array_just_comma": b"[,]",
    "array_just_minus": b"[-]",
    "array_unclosed": b"[1",
    "array_star_inside": b"[*]",
    "array_form_feed": b"[\x0c]",
    "incomplete_literals": b"[nul]",
    "literal_wrong_case": b"[True]",
    "literal_runs_on": b"[truefalse]",
    "number_++": b"[++1234]",
    "number_+1": b"[+1]",
    "number_-01": b"[-01]",
    "number_-1.0.": b"[-1.0.]",
    "number_minus_space": b"[- 1]",
    "number_.2e-3": b"[.2e-3]",
    "number_0.e1": b"[0.e1]",
    "number_0e": b"[0e]",
    "number_0e+": b"[0e+]",
    "number_1eE2": b"[1eE2]",
    "number_1_000": b"[1 000]",
    "number_2.": b"[2.]",
    "number_9.e+": b"[9.e+]",
    "number_hex": b"[0x42]",
    "number_leading_zero": b"[012]",
    "number_NaN": b"[NaN]",
    "number_minus_NaN": b"[-NaN]",
    "number_Infinity": b"[Infinity]",
    "number_minus_Infinity": b"[-Infinity]",
    "number_underscore": b"[1_0]",
    "number_with_letters": b"[1.8011670033376514H-308]",
    "number_fullwidth_digit": "[\uff11]".encode(),
    "number_devanagari_digits_behind": "[1\u0968\u0969]".encode(),
    "number_unicode_fraction": "[1.\uff12]".encode(),
    "object_bracket_key": b'{[: "x"}',
    "object_comma_instead_of_colon": b'{"x", null}',
    "object_double_colon": b'{"x"::"b"}',
    "object_missing_colon": b'{"a" b}',
    "object_missing_key": b'{:"b"}',
    "object_missing_value": b'{"a":}',
    "object_no_colon": b'{"a"}',
    "object_non_string_key": b"{1:1}",
    "object_single_quotes": b"{'a':0}",
    "object_trailing_comma": b'{"id":0,}',
    "object_two_commas": b'{"a":"b",,"c":"d"}',
    "object_unquoted_key": b'{a: "b"}',
    "object_comment": b'{"a":"b"}/**/',
    "object_unterminated_value": b'{"a":"a',
    "object_garbage_at_end": b'{"a":"b"}#',
    "string_1_surrogate_then_escape": b'["\\uD800\\"]',
    "string_escape_x": b'["\\x00"]',
    "string_escaped_emoji": b'["\\\xf0\x9f\x8c\x80"]',
    "string_escaped_control": b'["\\\t"]',
    "string_incomplete_escape": b'["\\"]',
    "string_incomplete_u": b'["\\u00A"]',
    "string_invalid_u": b'["\\uqqqq"]',
    "string_u_with_sign": b'["\\u+123"]',
    "string_u_with_underscore": b'["\\u1_23"]',
    "string_u_with_space": b'["\\u 123"]',
    "string_unescaped_newline": b'["new\nline"]',
    "string_unescaped_nul": b'["a\x00a"]',
    "string_unescaped_tab": b'["\t"]',
    "string_single_quote": b"['single quote']",
    "string_no_quotes": b"[\\n]",
    "structure_angle_bracket": b"<.>",
    "structure_ascii_unicode_identifier": b"a\xc3\xa5",
    "structure_capitalized_true": b"True",
    "structure_no_data": b"",
    "structure_nul_behind": b"[]\x00",
    "structure_two_values": b"1 1",
    "structure_no_break_space": b"[\xc2\xa0]",
    "structure_word_joiner": b"[\xe2\x81\xa0]",
    "invalid_utf8_overlong": b'["\xc0\xaf"]',
    "invalid_utf8_truncated": b'["\xe0\xff"]',
    "invalid_utf8_lone_continuation": b'["\x81"]',
    "invalid_utf8_not_in_range": b'["\xf4\xbf\xbf\xbf"]',
    "invalid_utf8_surrogate": b'["\xed\xa0\x80"]',
    "invalid_utf8_latin1": b'["\xe9"]',
    "invalid_utf8_outside_string": b"[1\xe5]",
    "object_name_twice": b'{"a":"b","a":"c"}',
    "object_name_twice_same_value": b'{"a":"b","a":"b"}',
    "object_name_twice_one_escaped": b'{"a":1,"\\u0061":2}',
}

# What RFC 8259 leaves to the implementation, and what this one does; None: accepted, of whatever value.
LEFT_OPEN: dict[str, tuple[bytes, Number | type[BadRequest] | None]] = {
    "number_huge_exponent": (b"1e999", Number(b"1e999")),
    "number_negative_huge_exponent": (b"-1e+9999", Number(b"-1e+9999")),
    "number_tiny": (b"123e-10000000", Number(b"123e-10000000")),
    "number_beyond_64_bits": (b"18446744073709551616", Number(b"18446744073709551616")),
    "number_30_digits": (b"9" * 30, Number(b"9" * 30)),
    "number_5000_digits": (b"1" * 5000, Number(b"1" * 5000)),
    "number_too_precise": (b"0.1234567890123456789", Number(b"0.1234567890123456789")),
    "surrogate_first_lone": (b'"\\uDADA"', BadRequest),
    "surrogate_first_then_text": (b'"\\uD888abc"', BadRequest),
    "surrogate_second_lone": (b'"\\uDFAA"', BadRequest),
    "surrogates_inverted": (b'"\\uDd1e\\uD834"', BadRequest),
    "surrogates_two_first": (b'"\\uD800\\uD800\\n"', BadRequest),
    "surrogate_in_member_name": (b'{"\\uDFAA":0}', BadRequest),
    "depth_at_the_limit": (b"[" * 63 + b"]" * 63, None),
    "depth_over_the_limit": (b"[" * 64 + b"]" * 64, BadRequest),
    "depth_500": (b"[" * 500 + b"]" * 500, BadRequest),
}


def wrapped(value: bytes) -> bytes:
    return b'{"command": ' + value + b"}"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("case", ACCEPTED)
def test_what_the_rfc_allows_is_accepted(read: Reader, case: str) -> None:
    text, expected = ACCEPTED[case]
    assert_same(read(wrapped(text), LIMITS), {b"command": expected})
    assert_same(read(text, LIMITS), expected)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_the_rfc_forbids_is_refused(read: Reader, case: str) -> None:
    for body in (REFUSED[case], wrapped(REFUSED[case])):
        with pytest.raises(BadRequest) as refused:
            read(body, LIMITS)
        assert (refused.value.status, refused.value.error) == (400, "invalid request")
        assert refused.value.detail.isprintable()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("case", LEFT_OPEN)
def test_what_the_rfc_leaves_open_is_pinned(read: Reader, case: str) -> None:
    text, expected = LEFT_OPEN[case]
    if expected is BadRequest:
        with pytest.raises(BadRequest):
            read(wrapped(text), LIMITS)
        return
    got = read(wrapped(text), LIMITS)
    if isinstance(expected, Number):
        assert_same(got, {b"command": expected})


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "not JSON: the body ends where a JSON value was expected"),
        (b'{"a":1', "not JSON: the body ends where ',' or '}' was expected"),
        (b"[1 2]", "not JSON: expected ',' or ']' at byte 3"),
        (b"{1", "not JSON: expected a member name in double quotes at byte 1"),
        (b'{"a"1', "not JSON: expected ':' at byte 4"),
        (b"[] x", "not JSON: expected the end of the body at byte 3"),
        (b"nan", "not JSON: expected a JSON value at byte 0"),
        (b'["abc', "not JSON: the string that starts at byte 1 has no end"),
        (b'"a\nb"', "not JSON: expected a valid escape, or control characters escaped, in a string at byte 2"),
        (b'{"a":1,"a":2}', "member 'a' is given twice, again at byte 7"),
        (b'"\\ud800"', "lone surrogate in the string that starts at byte 0"),
        (b"[[[]]]", "nested deeper than 2 at byte 2"),
        (b"\xef\xbb\xbf{}", "the body starts with a byte order mark"),
        ('{"command":"PING"}'.encode("utf-16"), "the body is not valid UTF-8"),
        (b'"\xff"', "the body is not valid UTF-8"),
        (b'"\xe4\xb8', "the body is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_a_mistake_has_one_wording_in_both_readers(read: Reader, body: bytes, detail: str) -> None:
    with pytest.raises(BadRequest, match=re.escape(detail)) as refused:
        read(body, Limits(json_depth_max=2))
    assert refused.value.detail == detail


@pytest.mark.parametrize("read", READERS)
def test_depth_is_counted_exactly_and_per_branch(read: Reader) -> None:
    limits = Limits(json_depth_max=3)
    assert read(b'[[[1]],[[2]],{"a":{"b":[1]}}]'.replace(b"[1]}}", b"1}}"), limits)
    for too_deep in (b"[[[[]]]]", b'[{"a":[{}]}]', b'{"a":{"a":{"a":{}}}}'):
        with pytest.raises(BadRequest, match="nested deeper than 3"):
            read(too_deep, limits)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":'])
def test_a_depth_limit_above_pythons_own_does_not_let_recursion_errors_out(read: Reader, opening: bytes) -> None:
    for body in (opening * 100, opening * 20_000):
        with pytest.raises(BadRequest):
            read(body, Limits(json_depth_max=10**9))


def test_too_many_items_are_refused_where_the_count_is_passed() -> None:
    limits = Limits(tokens_max=10)
    items_max = 10 + json_body._ITEMS_SLACK
    assert json_body.parse_in_steps(b"[" + b"1," * (items_max - 2) + b"1]", limits)
    bodies = (b"[" + b"1," * items_max, b"[" + b"[]," * items_max, b"[" + b'{"a":1},' * items_max)
    for body in bodies:  # none of them has an end: nothing behind the bound is looked at
        with pytest.raises(BadRequest, match="more items than a command may have words, 10") as refused:
            json_body.parse_in_steps(body, limits)
        assert (refused.value.status, refused.value.error) == (413, "too large")


@pytest.mark.parametrize("read", READERS)
def test_a_body_over_its_limit_is_too_large(read: Reader) -> None:
    assert read(b'"abcd"', Limits(body_bytes_max=6)) == b"abcd"
    with pytest.raises(BadRequest, match="the body has 7 bytes, at most 6 are taken") as refused:
        read(b'"abcde"', Limits(body_bytes_max=6))
    assert refused.value.status == 413


def test_a_number_longer_than_any_value_is_too_large() -> None:
    limits = Limits(value_bytes_max=10, key_bytes_max=5)
    assert json_body.parse_in_steps(b"1" * 10, limits) == b"1" * 10
    with pytest.raises(BadRequest) as refused:
        json_body.parse_in_steps(b"1" * 11, limits)
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("body", "quick"),
    [
        (b"", True),
        (b'{"command": "PING"}', True),
        (b"[" * 512, True),
        (b"[" * 513, False),
        (b'"' + b"a" * (json_body.QUICK_BYTES_MAX - 2) + b'"', True),
        (b'"' + b"a" * (json_body.QUICK_BYTES_MAX - 1) + b'"', False),
        (b"1," * 512, True),
        (b"1," * 513, False),
        (b"a " * 513, False),
        (b"\\n" * 513, False),
        (b"{}" * 513, False),
    ],
)
def test_only_bodies_that_cost_little_are_for_the_event_loop(body: bytes, quick: bool) -> None:
    assert json_body.is_quick(body) is quick


@pytest.mark.parametrize("unit", ["a", "é", "中", "😀", "\\n", "\\u00e9", "\\ud83d\\ude00", "a\\n", "中\\n", "a😀"])
@pytest.mark.parametrize("shift", range(4))
def test_a_string_of_many_steps_is_put_together_right(unit: str, shift: int) -> None:
    body = f'"{"x" * shift}{unit * 5000}"'.encode()
    assert json_body.parse_in_steps(body, LIMITS) == json.loads(body).encode()


def test_long_white_space_is_skipped() -> None:
    space = b" \t\r\n" * 40_000
    assert json_body.parse_in_steps(space + b"[" + space + b"1" + space + b"]" + space, LIMITS) == [b"1"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values, st.booleans(), st.sampled_from([None, 2]))
def test_both_readers_agree_with_the_stdlib_on_json(value: object, ascii_only: bool, indent: int | None) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    for read in READERS:
        assert_same(read(body, LIMITS), in_bytes(value))


@given(st.text(alphabet='{}[]",:\\ue1-.0 tnulrafsdD8\n\x00é😀', max_size=30))
def test_both_readers_agree_with_each_other_on_anything(text: str) -> None:
    body = text.encode()
    outcomes = [outcome(read, body) for read in READERS]
    assert outcomes[0] == outcomes[1]
    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        assert isinstance(outcomes[0], str)


@given(st.binary(max_size=40))
def test_no_bytes_raise_anything_but_bad_request(body: bytes) -> None:
    for read in READERS:
        outcome(read, body)


@given(st.text())
def test_any_string_round_trips_exactly(text: str) -> None:
    for read in READERS:
        for ascii_only in (True, False):
            assert read(json.dumps(text, ensure_ascii=ascii_only).encode(), LIMITS) == text.encode()


def outcome(read: Reader, body: bytes) -> object:
    try:
        return repr(read(body, LIMITS)).encode()
    except BadRequest as refused:
        return refused.detail


def in_bytes(value: object) -> Json:
    """What the readers should make of a value that `json.dumps` wrote."""
    if isinstance(value, dict):
        return {name.encode(): in_bytes(member) for name, member in value.items()}
    if isinstance(value, list):
        return [in_bytes(element) for element in value]
    if isinstance(value, str):
        return value.encode()
    if value is None or isinstance(value, bool):
        return value
    return Number(json.dumps(value).encode())


def assert_same(got: Json, expected: Json) -> None:
    """Equal, and every number a Number where a string is none; repr tells them apart in containers too."""
    assert got == expected
    assert kinds(got) == kinds(expected)


def kinds(value: Json) -> object:
    if isinstance(value, dict):
        return [(type(name), kinds(member)) for name, member in value.items()]
    return [kinds(element) for element in value] if isinstance(value, list) else type(value)


def refuse(constant: str) -> None:
    raise ValueError(constant)
