"""EXISTS and DELETE of keys in several slots: one request for each slot, and one answer."""

from __future__ import annotations

import pytest
from coredis.exceptions import TryAgainError

from engine.calls import Command
from engine.commands.keys import Delete, Exists
from engine.redis.errors import Lost, NotReplicated, NotSent
from engine.redis.performer import KEYS_MAX, Performer
from engine.redis.receipts import Receipts
from engine.replies import Error, Failure, Integer, Reply
from tests.harness.fake_redis import FakeRouter

AWAY = "the master is away"


class Asked:
    """A command that is being done."""

    def __init__(self, command: Command) -> None:
        self.router = FakeRouter(slot=lambda key: key[0])
        self.replies: list[Reply] = []
        Performer(self.router, Receipts(b"front", self.router)).perform(command, [], self.replies.append)

    @property
    def words(self) -> list[tuple[bytes | int, ...]]:
        return [(request.name, *request.serialized_arguments) for request in self.router.posted]

    def answer(self, result: object) -> None:
        """Answers the oldest request."""
        self.router.answer(self.router.posted[0], result)


def test_keys_of_a_slot_are_asked_for_together_and_the_answers_added_up() -> None:
    asked = Asked(Exists((b"a1", b"b1", b"a2", b"a1")))
    assert asked.words == [(b"EXISTS", b"a1", b"a2", b"a1"), (b"EXISTS", b"b1")]
    asked.answer(3)
    assert not asked.replies
    asked.answer(1)
    assert asked.replies == [Integer(4)]


def test_a_delete_that_finds_nothing_says_so() -> None:
    asked = Asked(Delete((b"a1", b"b1", b"a1")))
    assert asked.words == [(b"UNLINK", b"a1", b"a1"), (b"UNLINK", b"b1")]
    asked.answer(0)
    asked.answer(0)
    assert asked.replies == [Failure(Error.KEY_NOT_FOUND)]


def test_so_many_keys_are_asked_for_at_once_and_the_rest_after_them() -> None:
    asked = Asked(Exists(tuple(b"a%d" % number for number in range(KEYS_MAX + 1))))
    assert len(asked.words) == 1
    asked.answer(KEYS_MAX)
    assert asked.words == [(b"EXISTS", b"a%d" % KEYS_MAX)]
    asked.answer(1)
    assert asked.replies == [Integer(KEYS_MAX + 1)]


def test_keys_of_a_slot_that_is_being_moved_are_asked_for_one_by_one() -> None:
    asked = Asked(Delete((b"a1", b"a2")))
    asked.answer(TryAgainError("half here, half there"))
    assert asked.words == [(b"UNLINK", b"a1"), (b"UNLINK", b"a2")]
    asked.answer(1)
    asked.answer(1)
    assert asked.replies == [Integer(2)]


@pytest.mark.parametrize(
    ("command", "first", "detail"),
    [
        (Delete((b"a1", b"b1")), 1, f"{AWAY}; keys in other slots may have been removed"),
        (Delete((b"a1", b"b1")), NotReplicated(1), f"{AWAY}; keys in other slots may have been removed"),
        (Delete((b"a1", b"b1")), NotSent(AWAY), AWAY),
        (Delete((b"a1", b"b1")), Lost(AWAY), f"{AWAY}; the command may have been done, or not"),
        (Exists((b"a1", b"b1")), 1, AWAY),
    ],
)
def test_one_slot_that_fails_fails_the_command_and_a_delete_says_if_others_are_done(
    command: Command, first: object, detail: str
) -> None:
    for other_way_round in (False, True):
        asked = Asked(command)
        asked.answer(NotSent(AWAY) if other_way_round else first)
        assert not asked.replies, "it waits for the others"
        asked.answer(first if other_way_round else NotSent(AWAY))
        assert asked.replies == [Failure(Error.UNAVAILABLE, detail)]


def test_a_delete_that_too_few_replicas_have_is_done_with_all_its_keys() -> None:
    asked = Asked(Delete(tuple(b"a%d" % number for number in range(KEYS_MAX + 1))))
    asked.answer(NotReplicated(KEYS_MAX))
    assert asked.words == [(b"UNLINK", b"a%d" % KEYS_MAX)]
    asked.answer(1)
    [reply] = asked.replies
    assert isinstance(reply, Failure)
    assert reply.detail.startswith("done, but too few replicas have it yet")
