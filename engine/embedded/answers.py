"""Answers on their way to the callers, from the decision to the moment from which nothing can come back any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.calls import ANSWERED, HELD, SETTLED, AnyCall
from engine.embedded.committer import Committer


class Answers:
    """Lets answers go, and knows how many callers are left.

    Args:
        committer: with whose open group they go.
        none_left: called when the last caller has left; it may be the last for some time only.

    Attributes:
        callers: number of calls that are neither settled nor withdrawn.
    """

    def __init__(self, committer: Committer[AnyCall], none_left: Callable[[], None]) -> None:
        self.callers = 0
        self._committer = committer
        self._none_left = none_left

    def hold(self, call: AnyCall, reply: Any) -> None:
        """Lets the answer go with the open group."""
        call.reply = reply
        call.stage = HELD
        self._committer.open.answers.append(call)

    def give(self, call: AnyCall, reply: Any) -> None:
        """Answers at once; only for replies that rest on nothing."""
        call.reply = reply
        call.stage = HELD
        self.release(call)

    def release(self, call: AnyCall) -> None:
        """Delivers an answer, unless its caller has left."""
        if call.stage is HELD:
            if call.taken:
                call.stage = ANSWERED
            else:
                call.stage = SETTLED
                self.callers -= 1
                if not self.callers:
                    self._none_left()
            call.deliver(call)  # type: ignore[arg-type]  # a call's takes a call, a batch's a batch

    def settle(self, call: AnyCall) -> None:
        """Takes note that the answer was handed to the transport."""
        if call.stage is ANSWERED:
            call.stage = SETTLED
            self.leave()

    def leave(self) -> None:
        """One caller less."""
        self.callers -= 1
        if not self.callers:
            self._none_left()
