"""The engine on a Redis Cluster, or on one Redis with replicas: the same commands, the data elsewhere.

Theory of operation

    submit -> performer, lines, batches: requests -> router -> link of a master: pipeline, WAIT -> answers

A front holds no data: any number of them work on the same cluster, and any of them answers. A command is one request to
the master of its key's slot, a plain Redis command or a script; those of one event loop turn share a pipeline
(engine/redis/link.py). Redis does one request at a time, and that is what makes a command or a unit atomic.

What is durable is what Redis makes durable: docs/durability.md says what that is not.

A call's life is that of engine/embedded/engine.py. A popped value leaves a receipt in Redis until its answer was handed
over (receipts.py); whoever waits stands in a line here and costs no connection (lines.py).
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import trio

from engine.calls import ANSWERED, PARKED, SETTLED, WITHDRAWN, AnyCall, Batch, Call, Command
from engine.commands.table import WAITING, keys_of, may_wait
from engine.face import BATCHED_COMMANDS_MAX, Face
from engine.limits import Limits
from engine.redis.batches import Pipeline, Unit
from engine.redis.endpoint import Address, Endpoint
from engine.redis.lines import Lines
from engine.redis.link import LinkSettings
from engine.redis.node import ANSWER_TIMEOUT_S
from engine.redis.performer import Performer, own_name
from engine.redis.receipts import Receipts
from engine.redis.router import Router
from engine.redis.statistics import ClusterStatistics
from engine.redis.vitals import IN_FORCE
from engine.replies import MAILBOX_FULL, NULL, SHUTTING_DOWN, WAITERS_FULL, Error, Failure, Refused, Reply

CLOSE_WITHIN_S = 2.0
"""How long `run` waits at the end for masters that do not answer."""

_logger = logging.getLogger("holdfast.redis")


class ClusterEngine(Face):
    """A front of a cluster.

    Args:
        endpoint: where it is.
        limits: waiters, mailbox, answers.
        min_replicas: that must have a write before it is answered.
        answer_timeout_s: after which a master that does not answer counts as gone.
    """

    copies_values = True

    def __init__(
        self, endpoint: Endpoint, limits: Limits, *, min_replicas: int = 0, answer_timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self.accepting = True
        self._limits = limits
        self._min_replicas = min_replicas
        settings = LinkSettings(endpoint.connection_options(), min_replicas, answer_timeout_s)
        self._router = Router(endpoint, settings, self)
        self._receipts = Receipts(secrets.token_hex(8).encode(), self._router)
        self._lines = Lines(self._router, self._receipts, self._finish)
        self._performer = Performer(self._router, self._receipts)
        self._started_s = trio.current_time()
        self._commands = 0
        self._callers = 0  # whose calls are neither settled nor withdrawn
        self._under_way = 0
        self._batched_commands = 0
        self._closing = trio.Event()

    # For callers

    def submit_nowait(self, command: Command, deliver: Callable[[Call], None]) -> Call:
        """Part of `Face`."""
        call = Call(command, deliver)
        self._callers += 1
        if not self.accepting:
            self._finish(call, SHUTTING_DOWN)
        elif self._under_way >= self._limits.mailbox_max:
            self._finish(call, MAILBOX_FULL)
        elif type(command) in WAITING and self._may_park(command):
            self._commands += 1
            self._lines.park(call)
        else:
            self._commands += 1
            self._under_way += 1
            self._performer.perform(command, call.taken, partial(self._performed, call))
        return call

    def _may_park(self, command: Command) -> bool:
        return len(self._lines) < self._limits.waiters_max and not own_name(keys_of(command))

    def submit_many_nowait(self, commands: Sequence[Command], atomic: bool, deliver: Callable[[Batch], None]) -> Batch:
        """Part of `Face`."""
        batch = Batch(commands, atomic, deliver)
        self._callers += 1
        if not self.accepting:
            self._finish(batch, Refused(SHUTTING_DOWN))
        elif self._under_way >= self._limits.mailbox_max or self._batched_commands >= BATCHED_COMMANDS_MAX:
            self._finish(batch, Refused(MAILBOX_FULL))
        else:
            self._commands += len(commands)
            self._batched_commands += len(commands)
            self._under_way += 1
            self._start_batch(batch)
        return batch

    def _start_batch(self, batch: Batch) -> None:
        count = len(batch.commands)  # whoever is answered may free them

        def finish(reply: list[Reply] | Refused) -> None:
            self._batched_commands -= count
            self._performed(batch, reply)

        popped_max = self._limits.answer_bytes_max
        if batch.atomic:
            Unit(batch, self._router, self._receipts, popped_max, finish).send()
        else:
            Pipeline(batch, self._performer, popped_max, finish, lambda: batch.stage is WITHDRAWN).go_on()

    def settle(self, call: AnyCall) -> None:
        """Part of `Face`."""
        if call.stage is ANSWERED:
            call.stage = SETTLED
            self._callers -= 1
            self._receipts.settle(call.taken)

    def withdraw(self, call: AnyCall) -> None:
        """Part of `Face`."""
        if call.stage is SETTLED or call.stage is WITHDRAWN:
            return
        if call.stage is PARKED:
            assert isinstance(call, Call)
            self._lines.leave(call)
        elif call.stage is ANSWERED:
            self._receipts.take_back(call.taken)
        call.stage = WITHDRAWN
        self._callers -= 1

    def _performed(self, call: AnyCall, reply: Reply | list[Reply] | Refused) -> None:
        self._under_way -= 1
        if reply is NULL and isinstance(call, Call) and may_wait(call.command):
            reply = WAITERS_FULL  # else it would have been parked
        self._finish(call, reply)

    def _finish(self, call: AnyCall, reply: Any) -> None:
        """Delivers an answer; what was popped for a caller who has left goes back."""
        if call.stage is WITHDRAWN:
            self._receipts.take_back(call.taken)
            return
        call.reply = reply
        if call.taken:
            call.stage = ANSWERED
        else:
            call.stage = SETTLED
            self._callers -= 1
        call.deliver(call)  # type: ignore[arg-type]  # a call's takes a call, a batch's a batch

    def statistics(self) -> ClusterStatistics:
        """Returns the front's numbers at this moment."""
        router, masters = self._router, self._router.masters
        return ClusterStatistics(
            keys=masters.keys,
            masters=len(masters.topology.masters),
            masters_up=len(masters.up),
            waiters=len(self._lines),
            mailbox=self._under_way,
            commands=self._commands,
            round_trips=router.round_trips,
            requests_per_round_trip=round(router.requests / max(1, router.round_trips), 3),
            round_trip_p50_ms=router.percentile_ms(50),
            round_trip_p99_ms=router.percentile_ms(99),
            redirections=router.redirections,
            retries=router.retries,
            connections_lost=router.connections_lost,
            returned_values=self._receipts.returned_values,
            owed_values=self._receipts.owed,
            uptime_s=round(trio.current_time() - self._started_s, 3),
        )

    def readiness(self) -> Failure | dict[str, str | int]:
        """Tells whether every key can be reached, and what is in force if so.

        Returns:
            Why not; or what kind of Redis it is, how many masters, how many replicas a write waits for, and how the
            masters say they keep it: `appendonly`, `appendfsync`, `maxmemory_policy`. `status` and `detail` are there
            while one has no room.
        """
        if not self.accepting:
            return SHUTTING_DOWN
        masters = self._router.masters
        if masters.fault:
            return Failure(Error.UNAVAILABLE, masters.fault)
        full: dict[str, str | int] = {"status": "degraded", "detail": masters.full} if masters.full else {}
        return full | {
            "engine": "redis cluster" if masters.topology.cluster else "redis",
            "masters": len(masters.topology.masters),
            "min_replicas": self._min_replicas,
            **{name.replace("-", "_"): masters.config(name) for name in IN_FORCE},
        }

    # For whoever runs it

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connects, and serves until `close`; start it with `nursery.start`.

        Raises:
            ClusterError: nobody could be reached, or lets us in.
        """
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._router.run)
                nursery.start_soon(self._receipts.run)
                nursery.start_soon(self._lines.run)
                task_status.started()
                await self._closing.wait()
                await self._finish_up()
                nursery.cancel_scope.cancel()
        finally:
            self.accepting = False

    async def _finish_up(self) -> None:
        """Waits, not for ever, until everybody is answered and what has to go back is back."""
        self._receipts.insists = True  # else they would be lost for certain
        with trio.move_on_after(CLOSE_WITHIN_S):
            # Asked again and again, for it is true in many ways, and only here.
            while self._callers or self._under_way or self._lines.trying or self._receipts.owed:  # noqa: ASYNC110
                await trio.sleep(0.005)
            self._receipts.confirm()
            while not self._router.masters.idle:  # noqa: ASYNC110
                await trio.sleep(0.005)
        if self._receipts.owed:
            _logger.warning("%d popped values could not be put back: redis does not answer", self._receipts.owed)

    def shut_down(self) -> None:
        """Answers `unavailable` to parked waiters and to everything submitted from now on."""
        self.accepting = False
        self._lines.turn_away(SHUTTING_DOWN)

    def close(self) -> None:
        """Lets `run` finish: what was submitted is done and answered."""
        self.shut_down()
        self._closing.set()

    # For the router

    def link_up(self, address: Address) -> None:
        """Part of `RouterOwner`: what is owed goes back first, so that who waits gets it in the old order."""
        self._receipts.give_back()
        self._lines.try_all(slot for slot, owner in enumerate(self._router.masters.topology.owners) if owner == address)

    def slots_moved(self, slots: Iterable[int]) -> None:
        """Part of `RouterOwner`."""
        self._lines.try_all(slots)

    def key_changed(self, key: bytes | None) -> None:
        """Part of `RouterOwner`."""
        if key is None:
            self._lines.try_all()
        else:
            self._lines.key_changed(key)
