"""Words that are numbers: what options take, as the fields of commands have it. Pure."""

from __future__ import annotations

import math
import re
from decimal import Decimal

from engine.commands.grammar import CommandError, show

TTL_MS_MAX = 10**15
"""Longest expiry, 31,700 years: far from where a deadline would no longer fit the log's 64 bits."""

TIMEOUT_S_MAX = 10**9
"""Longest BQPOP timeout, 31 years; for longer ones leave it out."""

_INTEGER = re.compile(rb"[0-9]{1,16}")
_DECIMAL = re.compile(rb"(?:[0-9]{1,15}(?:\.[0-9]{0,15})?|\.[0-9]{1,15})")


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
    """Reads a time to wait in seconds, a decimal, as milliseconds."""
    if _DECIMAL.fullmatch(argument):
        timeout_s = Decimal(argument.decode())  # a float would make 16.1 s one millisecond longer
        if timeout_s <= TIMEOUT_S_MAX:
            return math.ceil(timeout_s * 1000)
    raise CommandError(f"{name} takes seconds as a decimal from 0 to {TIMEOUT_S_MAX}, not {show(argument)}")
