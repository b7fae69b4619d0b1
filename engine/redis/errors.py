"""What goes wrong between us and Redis, as far as coredis has no name for it."""

from __future__ import annotations

from typing import Any


class ClusterError(Exception):
    """The engine cannot start; the message is for the operator."""


class NotSent(Exception):  # what became of a request, like Lost
    """A request never reached the node: nothing was done. The message says why."""


class NotYet(NotSent):  # what became of a request
    """Nothing was done, and soon it may go: a master has too few replicas, as a new one has at first."""


class Lost(Exception):
    """A request was sent, and the connection broke before its answer came: it may have been done or not."""


class NotReplicated(Exception):
    """A request was done, but too few replicas have it yet: it is lost if the master fails now.

    Attributes:
        result: its answer.
    """

    def __init__(self, result: Any) -> None:
        super().__init__(result)
        self.result = result
