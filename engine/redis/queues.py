"""Queues: functions of `lua/queues.lua`, for their mark has to be looked at, and what is popped leaves a receipt."""

from __future__ import annotations

from typing import Any

import msgpack

from engine.calls import Command
from engine.commands.queues import BQPop, QLen, QPop, QPush
from engine.redis.format import new_mark
from engine.redis.receipts import FIRST, LAST, values_in
from engine.redis.translation import Refusal, Scripted, Translation, integer
from engine.replies import NULL, Error, Failure, Ok, Reply, Value


def first_values(count_max: int, bytes_max: int) -> tuple[int, int]:
    """The words of BQPOP behind its key: how many values, and of how many bytes, it takes; of one value all it has."""
    return (count_max, bytes_max)


def _qpush(command: QPush) -> tuple[bytes, bytes]:
    return (new_mark(), msgpack.packb(command.values, use_bin_type=False))


def _after_qpush(_command: QPush, answer: Any) -> Reply:
    return Ok(answer)


def _key_alone(_command: QPop | QLen) -> tuple[()]:
    return ()


def _bqpop(_command: BQPop) -> tuple[int, int]:
    return first_values(1, 0)


def _after_pop(_command: QPop | BQPop, answer: Any) -> Reply:
    if isinstance(answer, list):
        return Value(values_in(answer)[0])
    return NULL if answer is None else Failure(Error.QUEUE_IS_EMPTY)


TRANSLATIONS: dict[type[Command], Translation] = {
    QPush: Scripted(_qpush, _after_qpush),
    QPop: Scripted(_key_alone, _after_pop, Refusal.ZERO, end=LAST),
    BQPop: Scripted(_bqpop, _after_pop, end=FIRST),
    QLen: Scripted(_key_alone, integer),
}
