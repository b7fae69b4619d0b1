"""What goes wrong on the disk of a simulation: errors of any operation, and the end of everything before one."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.harness.disk import CHANGING, OPERATIONS, FakeDisk

TARGETS: tuple[tuple[str, ...], ...] = (
    ("sync",),
    ("sync",),
    ("sync",),
    ("sync",),
    ("write",),
    ("sync_directory",),
    ("create", "rename", "remove"),
    ("allocate", "truncate"),
    ("names", "size", "read", "open"),
    CHANGING,
    OPERATIONS,
)
MOMENTS: tuple[tuple[tuple[str, ...], int], ...] = (
    (CHANGING, 1),
    (CHANGING, 1),
    (("write", "sync"), 2),
    (("sync_directory",), 6),
    (("sync_directory",), 6),
    (("create", "rename", "remove"), 4),
)
"""Before which operations everything may end, and one of how many operations is such a one."""

ERRORS = (errno.EIO, errno.EIO, errno.ENOSPC)
OF_DESCRIPTORS = ("names", "read", "create", "open")
"""Operations that can find the process out of descriptors."""

OF_ROOM = ("allocate", "create")
"""Operations that a quota or a thin volume refuses, whatever the disk says is free; an engine has to go on."""

FOR_EVER = 1 << 30


@dataclass(slots=True)
class Plan:
    """What is going to happen, counted in operations from now on.

    Attributes:
        strike_at: before which of `struck` everything ends; None for never.
        struck: operations that count for it.
        targets: the operations that fail.
        error: with which errno.
        fail_at: the first of them that fails; None for never.
        failures: how many fail in a row.
        strike_after: when the last of these has failed, everything ends so many of `CHANGING` later; None for never.
    """

    strike_at: int | None = None
    struck: tuple[str, ...] = CHANGING
    targets: tuple[str, ...] = ()
    error: int = errno.EIO
    fail_at: int | None = None
    failures: int = 1
    strike_after: int | None = None


def draw_plan(chance: random.Random, *, strikes: float, errors: float, within: int) -> Plan:
    """Draws a plan.

    Args:
        chance: of the seed.
        strikes: how probable a strike is.
        errors: how probable errors are.
        within: number of operations among which it happens.
    """
    plan = Plan()
    if chance.random() < strikes:
        plan.struck, share = chance.choice(MOMENTS)
        plan.strike_at = chance.randrange(within // share + 1)
    if chance.random() < errors:
        plan.targets = chance.choice(TARGETS)
        plan.error = chance.choice(ERRORS)
        plan.fail_at = chance.randrange(within // 8 + 1)
        plan.failures = chance.choice((1, 1, 1, 1, 3, FOR_EVER))
        if chance.random() < 0.5:
            plan.strike_after = chance.randint(1, within // 8)  # late enough for what failed to be taken for done
        kind = chance.random()
        if kind < 0.1:
            plan.targets, plan.error = OF_DESCRIPTORS, errno.EMFILE
        elif kind < 0.25:
            plan.targets, plan.error = OF_ROOM, errno.ENOSPC
    return plan


class Faults:
    """The fault of a `FakeDisk` that follows a plan.

    Args:
        disk: where it is to happen.
        strike: ends everything: a kill, or a power cut.
        trace: told each operation.
    """

    def __init__(self, disk: FakeDisk, strike: Callable[[], None], trace: Callable[[str], None] | None) -> None:
        self.injected = 0
        """Errors so far."""
        self.excuses = 0
        """Those of them that may end an engine: not those that say that there is nothing left."""
        self._disk = disk
        self._strike = strike
        self._trace = trace
        self._plan = self._last_plan = Plan()

    @property
    def may_say_full(self) -> bool:
        """Whether this plan or the one before has the disk pretend that it is full."""
        return any(plan.fail_at is not None and plan.error == errno.ENOSPC for plan in (self._plan, self._last_plan))

    def arm(self, plan: Plan) -> None:
        """Follows this plan from now on."""
        self._last_plan, self._plan = self._plan, plan
        self._disk.fault = self._operate

    def _operate(self, operation: str, name: str) -> None:
        plan = self._plan
        if self._trace is not None:
            self._trace(f"disk: {operation} {name}")
        if plan.strike_at is not None and operation in plan.struck:
            if plan.strike_at == 0:
                plan.strike_at = None
                self._strike()
                raise OSError(f"{operation} {name} does not come to pass")
            plan.strike_at -= 1
        if plan.fail_at is not None and operation in plan.targets:
            if plan.fail_at > 0:
                plan.fail_at -= 1
            elif plan.failures > 0:
                plan.failures -= 1
                self.injected += 1
                self.excuses += plan.targets not in (OF_DESCRIPTORS, OF_ROOM)
                if plan.failures == 0 and plan.strike_after is not None:
                    plan.strike_at, plan.struck = plan.strike_after, CHANGING
                if self._trace is not None:
                    self._trace(f"disk: {operation} {name} fails with {errno.errorcode[plan.error]}")
                raise OSError(plan.error, "injected", name)
