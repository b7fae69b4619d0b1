"""The whole command set against the naive model, with time, leaving clients and crashes as rules.

After every step each answer that has come must be the model's, whoever has none must be waiting by the model's
account (or have its answer held back by a commit), and the state in memory must be the model's. After a crash the
disk must hold one of the states the store went through, none older than the last one that was acknowledged (I1 to
I5), and replay must give the same dump each time (I7). Queue values are all different, so equal states are I6 as well.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from functools import partial

import pytest
import trio
from hypothesis import seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.embedded.committer import FsyncPolicy
from engine.embedded.recovery import recover
from engine.limits import Limits
from engine.store.state import State
from tests.harness.effort import many
from tests.harness.model import Content, History, Model, answer_of
from tests.harness.stepper import Stepper
from tests.harness.world import EPOCH_MS, BatchJob, Job, World

LIMITS = Limits(waiters_max=4)
SEGMENT_BYTES_MAX = 512
COMMIT_MS = 10

KEYS = st.sampled_from([b"a", b"a", b"a", b"\xff\x00"])
KEY_LISTS = st.lists(KEYS, min_size=1, max_size=3)
PADDING = st.sampled_from([b"", b"", b"\x00", b"x" * 200])
EXPIRY = st.sampled_from([(), (b"EX", b"1"), (b"PX", b"5"), (b"PX", b"5")])
CONDITION = st.sampled_from([(), (), (b"NX",), (b"XX",)])
TIMEOUT = st.sampled_from([(), (), (b"0",), (b"0.005",), (b"1",), (b"90",)])
PASSING_MS = st.sampled_from([1, 4, 5, 5, 5, 10, 1000, 1001, 100_000])

PUSHES = st.builds(lambda key, pads: [b"QPUSH", key, *pads], KEYS, st.lists(PADDING, min_size=1, max_size=4))
POPS = st.one_of(
    st.builds(lambda key: [b"QPOP", key], KEYS),
    st.builds(lambda key, timeout: [b"BQPOP", key, *timeout], KEYS, TIMEOUT),
)
COMMANDS = st.one_of(
    st.builds(lambda key, pad, ex, nx: [b"SET", key, pad, *ex, *nx], KEYS, PADDING, EXPIRY, CONDITION),
    st.builds(lambda name, key: [name, key], st.sampled_from([b"GET", b"STRLEN", b"QLEN", b"TTL", b"PERSIST"]), KEYS),
    st.builds(lambda name, keys: [name, *keys], st.sampled_from([b"DELETE", b"EXISTS"]), KEY_LISTS),
    PUSHES,
    POPS,
    st.just([b"PING"]),
)
BATCHES = st.tuples(st.lists(COMMANDS, min_size=1, max_size=5), st.booleans())
"""Commands, and whether they are a unit."""

Submitted = Job | BatchJob


def content_of(state: State, now_ms: int) -> Content:
    """What a state holds, without keys that are expired but not swept yet."""
    content: Content = {}
    for kind, key, *rest in state.dump():
        if kind == "queue":
            content[key] = ("queue", *rest[0])
        elif rest[1] is None or rest[1] > now_ms:
            content[key] = ("value", *rest)
    return content


class Holdfast(RuleBasedStateMachine):
    """The engine in a world that is moved step by step, and the model beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.stepper = Stepper()
        self.jobs: dict[Submitted, int] = {}  # those not answered yet, with the step their answer rests on
        self.parked: set[Submitted] = set()
        self.values = 0
        self.in_flight_until_ms = 0

    @initialize(
        fsync=st.sampled_from([FsyncPolicy.ALWAYS, FsyncPolicy.ALWAYS, FsyncPolicy.INTERVAL, FsyncPolicy.NEVER]),
        commit_ms=st.sampled_from([0, COMMIT_MS]),
    )
    def start(self, fsync: FsyncPolicy, commit_ms: int) -> None:
        self.fsync, self.commit_ms = fsync, commit_ms
        self.world = World(
            self.stepper.nursery,
            limits=LIMITS,
            fsync=fsync,
            commit_s=commit_ms / 1000,
            segment_bytes_max=SEGMENT_BYTES_MAX,
        )
        self.stepper.run(self.world.start)
        self.model = Model(EPOCH_MS, LIMITS.waiters_max)
        self.history = History({}, EPOCH_MS)
        self.acknowledged = 0

    @rule(commands=st.lists(COMMANDS, min_size=1, max_size=4), data=st.data())
    def submit_together(self, commands: list[list[bytes]], data: st.DataObject) -> None:
        self._submit(commands, data)

    @rule(pushes=st.lists(PUSHES, max_size=1), pops=st.lists(POPS, min_size=1, max_size=6), data=st.data())
    def pop_together(self, pushes: list[list[bytes]], pops: list[list[bytes]], data: st.DataObject) -> None:
        self._submit(pushes + pops, data)

    @rule(batches=st.lists(BATCHES, min_size=1, max_size=2), commands=st.lists(COMMANDS, max_size=2), data=st.data())
    def submit_batches(
        self, batches: list[tuple[list[list[bytes]], bool]], commands: list[list[bytes]], data: st.DataObject
    ) -> None:
        self._submit(commands, data, batches)

    def _submit(
        self,
        commands: list[list[bytes]],
        data: st.DataObject,
        batches: Sequence[tuple[list[list[bytes]], bool]] = (),
    ) -> None:
        """Requests of several clients, all in one tick, and before them in the same tick some clients leave."""
        leaving = []
        if self.jobs:
            leaving = data.draw(st.lists(st.sampled_from(list(self.jobs)), unique=True, max_size=3), label="leaving")
        argvs = [self._with_own_values(argv) for argv in commands]
        drawn = [([self._with_own_values(argv) for argv in batch], atomic) for batch, atomic in batches]
        jobs = self.stepper.run(self._leave_and_submit, leaving, argvs, drawn)
        if leaving:
            self._leave(leaving)
        deeds = [
            *(partial(self.model.do, words=argv) for argv in argvs),
            *(partial(self._do_batch, batch=batch, atomic=atomic) for batch, atomic in drawn),
        ]
        for job, deed in sorted(zip(jobs, deeds, strict=True), key=lambda pair: pair[0].submitted or 0):
            deed(job)
            self._step()
            self.jobs[job] = self.history.last
            if self.model.is_waiting(job):
                self.parked.add(job)

    def _do_batch(self, job: Submitted, batch: list[list[bytes]], *, atomic: bool) -> None:
        if atomic:
            self.model.do_unit(job, batch)
            return
        answers = []
        for argv in batch:
            answers.append(self.model.do_in_batch(job, argv))
            self._step()
        self.model.answers[job] = "batch", answers

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        leaving = data.draw(st.lists(st.sampled_from(list(self.jobs)), unique=True, min_size=1), label="leaving")
        self.stepper.run(self._leave_and_submit, leaving, [], [])
        self._leave(leaving)

    @rule(ms=PASSING_MS)
    def pass_time(self, ms: int) -> None:
        self._time_passed(self.stepper.run_through(self._sleep, ms))

    @rule(written=st.booleans())
    def kill_and_start(self, *, written: bool) -> None:
        """SIGKILL, before or after the group on its way was written."""
        self.stepper.run(partial(self.world.kill, written=written))
        self._reopen(self.acknowledged)

    @rule(torn=st.none() | st.integers(0, 2**32), written=st.booleans())
    def cut_power_and_start(self, torn: int | None, *, written: bool) -> None:
        noise = None if torn is None else random.Random(torn)
        self.stepper.run(partial(self.world.cut_power, noise, written=written))
        if self.fsync is FsyncPolicy.ALWAYS:
            safe = self.acknowledged
        elif self.fsync is FsyncPolicy.INTERVAL:
            safe = self.history.last_before(self.model.now_ms - 1000 - 5 * self.commit_ms)
        else:
            safe = 0
        self._reopen(safe)

    @rule()
    def stop_and_start(self) -> None:
        elapsed_ms = self.stepper.run_through(self.world.stop)
        self.model.shut_down()
        self._time_passed(elapsed_ms)
        self.receive_answers()
        assert not self.jobs, "a clean stop answers everybody"
        self._reopen(self.history.last)

    @invariant()
    def receive_answers(self) -> None:
        for job, step in list(self.jobs.items()):
            if job.done.is_set():
                assert job.reply is not None
                answer = answer_of(job.reply)
                assert answer == self.model.receive(job), job.command
                if answer not in (("value", b"PONG"), ("error", "unavailable")):  # these rest on nothing
                    self.acknowledged = max(self.acknowledged, step)
                del self.jobs[job]
            elif self.model.now_ms >= self.in_flight_until_ms:
                assert self.model.is_waiting(job), f"{job.command} should be answered"

    @invariant()
    def the_state_is_the_models(self) -> None:
        assert content_of(self.world.state, self.model.now_ms) == self.model.content()
        assert len(self.world.engine._pops.waiters) == len(self.parked)

    def teardown(self) -> None:
        self.stepper.close()

    async def _leave_and_submit(
        self, leaving: list[Submitted], argvs: list[list[bytes]], batches: list[tuple[list[list[bytes]], bool]]
    ) -> list[Submitted]:
        for job in leaving:
            job.leave()
        return [
            *(self.world.spawn(argv) for argv in argvs),
            *(self.world.spawn_many(*batch, atomic=atomic) for batch, atomic in batches),
        ]

    async def _sleep(self, ms: int) -> None:
        # A millionth more: what is due at that very millisecond must not be missed by a rounding of seconds.
        await trio.sleep_until((round(trio.current_time() * 1000) + ms) / 1000 + 1e-6)

    def _with_own_values(self, argv: list[bytes]) -> list[bytes]:
        """Makes every value that is written different from all others."""
        if argv[0] not in (b"SET", b"QPUSH"):
            return argv
        values_end = 3 if argv[0] == b"SET" else len(argv)
        owned = argv[:2]
        for padding in argv[2:values_end]:
            self.values += 1
            owned.append(b"%d" % self.values + padding)
        return owned + argv[values_end:]

    def _leave(self, leaving: list[Submitted]) -> None:
        for job in leaving:
            assert job.done.is_set()
            assert job.reply is None
            del self.jobs[job]
            self.parked.discard(job)
        self.model.leave(*leaving)
        self._step()

    def _step(self) -> None:
        """Notes a state the store went through; who was served by it is answered from it."""
        number = self.history.add(self.model.content(), self.model.now_ms)
        for job in [job for job in self.parked if job in self.model.answers]:
            self.parked.remove(job)
            self.jobs[job] = number
        # It goes to the disk after the group and the sync before it.
        self.in_flight_until_ms = self.model.now_ms + 4 * self.commit_ms

    def _time_passed(self, ms: int) -> None:
        self.model.pass_time(ms)
        if any(job in self.model.answers for job in self.parked):
            self._step()
        else:
            self.history.add(self.model.content(), self.model.now_ms)

    def _reopen(self, safe: int) -> None:
        """Starts again on what the crash left, after comparing it with what it may have left."""
        dumps = []
        disk = self.world.disk.copy()
        for _ in range(2):
            directory = disk.directory()
            state, log = recover(directory, LIMITS, wall_ms=EPOCH_MS, segment_bytes_max=SEGMENT_BYTES_MAX)
            dumps.append(list(state.dump()))
            log.abandon()
        assert dumps[0] == dumps[1], "replay gave two different states"
        self.stepper.run(self.world.start)
        now_ms = self.model.now_ms
        found = content_of(self.world.state, now_ms)
        assert found == content_of(state, now_ms)
        assert found in self.history.since(safe, now_ms)
        self.jobs.clear()
        self.parked.clear()
        self.model.restart(found)
        self.history = History(found, now_ms)
        self.acknowledged = 0


@pytest.mark.costly("50 lives of 40 steps, with a start after each crash")
@pytest.mark.parametrize("part", range(4))
def test_the_engine_does_what_the_model_does(caplog: pytest.LogCaptureFixture, part: int) -> None:
    caplog.set_level(logging.ERROR, "holdfast.wal")  # torn tails are what the crashes are for
    machine = seed(part)(type("Holdfast", (Holdfast,), {}))
    run_state_machine_as_test(machine, settings=settings(max_examples=many(50), stateful_step_count=40))
