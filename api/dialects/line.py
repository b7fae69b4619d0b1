"""The line dialect: `{"command": "SET k 'two words'"}`. Pure, and no step of it holds the GIL for long.

`read` is the authority; `plain` and `plain_lines` do the same for lines without quotes, in less time.
"""

from __future__ import annotations

import re
from typing import Any

from api.dialects.cut_json import BEGINS, CutJson
from api.dialects.json_body import take_steps
from api.dialects.request import LINE, Dialect, Request, Understood, command_of
from engine.calls import Command
from engine.commands import table
from engine.commands.grammar import CommandError
from engine.limits import KIB, Limits
from engine.replies import Error, Failure

_PLAIN_LINE_BYTES_MAX = 64 * KIB
"""Longest line that is split in one go, which holds the GIL; longer ones are split word by word."""

# What stands between two quotes, in bounded steps that never cut an escape in two.
_SPACES_STEP = re.compile(rb" {0,65536}+")
_DOUBLE_STEP = re.compile(rb'(?:[^"\\]{1,64}+|\\x[0-9a-fA-F]{2}|\\.){0,2048}+', re.DOTALL)
_SINGLE_STEP = re.compile(rb"(?:[^'\\]{1,64}+|\\'|\\){0,2048}+")
_DOUBLE_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_DOUBLE_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}

_SINGLE_QUOTE, _DOUBLE_QUOTE = b"'\""
_LIST, _OBJECT = b" [", b" { "
"""How JSON with a space in it may begin where there is no quote."""


def read(line: bytes, limits: Limits) -> Request:
    """Turns a line into a request.

    Args:
        line: the member `command`, alone in its body.
        limits: of the product.

    Returns:
        The request; it has a failure when the quotes do not match or the words are too many.
    """
    try:
        return Request(split_line(line, limits.tokens_max), Dialect.LINE)
    except CommandError as mistake:
        return Request([], Dialect.LINE, failure=Failure(mistake.error, mistake.detail))


def plain(text: str, limits: Limits) -> Understood | None:
    """Understands a line at once if no quote is in it.

    Args:
        text: the line.
        limits: of the product.

    Returns:
        The request, and the command or the failure to answer instead; None for a line with quotes or with JSON.

    Raises:
        ValueError: a lone surrogate.
    """
    line = text.encode()
    if _DOUBLE_QUOTE in line or _SINGLE_QUOTE in line or _LIST in line or _OBJECT in line:
        return None
    words = line.split(b" ")
    return LINE, command_of([word for word in words if word] if b"" in words else words, limits)


def plain_lines(elements: list[Any], strings: int | None, limits: Limits) -> list[Command | Failure] | None:
    """Understands the elements of a list if all are plain lines, as in most batches: in 0.7 microseconds each.

    Args:
        elements: as scanned.
        strings: how many they must have, as `json_body.scan` says.
        limits: of the product.

    Returns:
        For each the command, or the failure to answer instead; None when they have to be looked at one by one.
    """
    if strings != 2 * len(elements) or set(map(type, elements)) != {dict} or sum(map(len, elements)) != len(elements):
        return None
    lines = [element.get("command") for element in elements]
    if set(map(type, lines)) != {str}:
        return None
    text = "\n".join(lines).encode()  # there is no line feed in a line, for nothing was escaped
    if _SINGLE_QUOTE in text or _LIST in text or _OBJECT in text:
        return None
    argvs = [line.split() for line in text.split(b"\n")]  # for the same reason there are no tabs and the like
    return [table.plain(argv, limits) or command_of(argv, limits) for argv in argvs]


def split_line(line: bytes, tokens_max: int) -> list[bytes]:
    r"""Splits a line into words, by the rules of redis-cli (`sdssplitargs`) but at spaces only.

    A word that starts with a quote runs to the matching one. Between double quotes `\n \r \t \b \a`
    and `\xHH` are escapes and a backslash before anything else is dropped; between single quotes only
    `\'` is one. A quote inside a word is literal.

    Args:
        line: the words.
        tokens_max: most words that are taken.

    Returns:
        The words; none for a line that is empty or all spaces.

    Raises:
        CommandError: quotes that do not match, a JSON value that the spaces in it would cut, or too many words.
    """
    if len(line) <= _PLAIN_LINE_BYTES_MAX and not any(mark in line for mark in (b'"', b"'", _LIST, _OBJECT)):
        return [word for word in line.split(b" ") if word]  # the grammar counts these few
    cut = CutJson(line)
    words: list[bytes] = []
    _, at = take_steps(_SPACES_STEP, line, 0)
    while at < len(line):
        if len(words) == tokens_max:
            raise CommandError(f"a command has at most {tokens_max} words", Error.TOO_LARGE)
        if line[at] in b"\"'":
            word, at = _quoted(line, at)
        else:
            end = line.find(b" ", at)
            end = len(line) if end < 0 else end
            if line[at] in BEGINS and words and end < len(line):
                cut.check(at, end)
            word, at = line[at:end], end
        words.append(word)
        at += 1  # a space or nothing is behind every word
        if line.startswith(b" ", at):
            _, at = take_steps(_SPACES_STEP, line, at)
    return words


def _quoted(line: bytes, start: int) -> tuple[bytes, int]:
    """Reads the quoted word that starts at `start`: the word, and the position behind its quote."""
    quote = line[start : start + 1]
    double = quote == b'"'
    pieces, at = take_steps(_DOUBLE_STEP if double else _SINGLE_STEP, line, start + 1)
    if line[at : at + 1] != quote:
        raise CommandError(f"unbalanced quotes: the word that starts at byte {start} has no closing quote")
    if line[at + 1 : at + 2] not in (b" ", b""):
        raise CommandError(
            f"the closing quote at byte {at} must be followed by a space;"
            f" write a quote within the word as \\{quote.decode()}"
        )
    pieces = [_unescape(piece, double) if b"\\" in piece else piece for piece in pieces]
    return b"".join(pieces), at + 1


def _unescape(piece: bytes, double: bool) -> bytes:
    return _DOUBLE_ESCAPE.sub(_unescaped, piece) if double else piece.replace(b"\\'", b"'")


def _unescaped(match: re.Match[bytes]) -> bytes:
    in_hex, other = match.groups()
    return bytes.fromhex(in_hex.decode()) if in_hex else _DOUBLE_ESCAPES.get(other, other)
