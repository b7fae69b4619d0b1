"""Words that are numbers: what options take, as the fields of commands have it. Pure."""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, ROUND_CEILING, Context

from engine.commands.grammar import CommandError, show

TTL_MS_MAX = 10**15
"""Longest expiry, 31,700 years: far from where a deadline would no longer fit the log's 64 bits."""

TIMEOUT_S_MAX = 10**9
"""Longest BQPOP timeout, 31 years; for longer ones leave it out."""

_INTEGER = re.compile(rb"[0-9]{1,16}")
_NUMBER = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

_NUMBER_BYTES_MAX = 4096
"""Far more digits than any program prints; a million of them would take 45 ms to read."""

_ROUNDS_UP = Context(prec=28, rounding=ROUND_CEILING, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
"""Never an error and never less: what is too small for it is the smallest number, what is too large is infinite."""


def seconds(name: str, argument: bytes) -> int:
    """Reads a time to live in whole seconds, as milliseconds."""
    return _ttl_ms(name, argument, 1000, "seconds")


def milliseconds(name: str, argument: bytes) -> int:
    """Reads a time to live in whole milliseconds."""
    return _ttl_ms(name, argument, 1, "milliseconds")


def _ttl_ms(name: str, argument: bytes, factor: int, unit: str) -> int:
    if _INTEGER.fullmatch(argument):
        ttl_ms = int(argument) * factor
        if 0 < ttl_ms <= TTL_MS_MAX:
            return ttl_ms
    raise CommandError(f"{name} takes a whole number of {unit} from 1 to {TTL_MS_MAX // factor}, not {show(argument)}")


def timeout_ms(name: str, argument: bytes) -> int:
    """Reads a time to wait in seconds, as any program prints a number, as milliseconds; part of one is a whole one.

    A negative number is refused, as Redis and SQS do: to some it means not at all, to others for ever.
    """
    if len(argument) <= _NUMBER_BYTES_MAX and _NUMBER.fullmatch(argument):
        timeout_s = _ROUNDS_UP.create_decimal(argument.decode())  # a float would make 16.1 s one millisecond longer
        if timeout_s < 0:
            raise CommandError(f"{name} is negative: {show(argument)}; 0 answers at once, and left out it waits")
        if timeout_s <= TIMEOUT_S_MAX:
            return int(_ROUNDS_UP.to_integral_value(_ROUNDS_UP.scaleb(timeout_s, 3)))
    raise CommandError(f"{name} takes a number of seconds from 0 to {TIMEOUT_S_MAX}, such as 0.5, not {show(argument)}")
