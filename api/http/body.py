"""Request bodies in memory, and the one budget they share."""

from __future__ import annotations

from engine.limits import KIB

FREE_BODY_BYTES = 16 * KIB
"""A share up to this length costs the budget nothing: clients that fill it slowly cannot shut commands out."""


class BodyBudget:
    """The bytes of request bodies that may be in memory at once, over all connections."""

    def __init__(self, bytes_max: int) -> None:
        self.left = bytes_max

    def take(self, size: int) -> bool:
        """Takes `size` bytes out of the budget; False when it does not hold so many."""
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        """Puts bytes back."""
        self.left += size


class HeldBody:
    """A request body and its share of the budget.

    Attributes:
        data: the body, as far as it has come.
    """

    __slots__ = ("_budget", "_held", "data")

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self._budget: BodyBudget | None = None
        self._held = 0

    def hold(self, budget: BodyBudget, size: int) -> bool:
        """Makes the share of this body `size` bytes in all, or none if that is free.

        Args:
            budget: of all bodies; the same one at every call.
            size: bytes of memory.

        Returns:
            False when the budget does not hold so many; the share is then as it was.
        """
        self._budget = budget
        share = size if size > FREE_BODY_BYTES else 0
        taken = budget.take(share - self._held)
        self._held = share if taken else self._held
        return taken

    def release(self) -> None:
        """Drops the body and gives its share back; harmless when done already."""
        self.data = b""
        if self._budget is not None:
            self._budget.give_back(self._held)
        self._held = 0
