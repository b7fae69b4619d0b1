"""One simulation: the real engine on a fake disk, its clients, and everything that can happen to them, from one seed.

    lives of the engine     start -> clients work -> clean stop, kill, power cut, or an error of the disk -> start ...
    within a life           errors of file operations; an end before any of them; slow commits; clients that leave
    between lives           starts that fail or are struck down half-way; a wall clock that was moved; a full disk
    after each              the judge and the invariants look at what the clients saw and at what the start found

The seed decides everything, the order in which trio runs its tasks included; nothing depends on the real time, on
addresses of objects or on the hashes of strings. So a seed is a whole run; `--trace` prints the same bytes each time.
"""

from __future__ import annotations

import logging
import math
import random
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress

import trio
import trio.testing
from trio._core import _run

from engine.embedded import actor, performer
from engine.embedded.committer import FsyncPolicy
from engine.face import FoldFailed
from tests.harness.disk import FakeDisk
from tests.harness.world import World
from tests.simulate import invariants
from tests.simulate.books import Books
from tests.simulate.clients import GROUPS
from tests.simulate.crowd import LIMITS, Crowd
from tests.simulate.faults import Faults, Plan, draw_plan
from tests.simulate.history import Dump, End, Violation
from tests.simulate.linearizability import Judge
from tests.simulate.result import Result
from tests.simulate.shelf import NULL, WRONG_TYPE
from wal.manifest import read_manifest
from wal.segment import Damage, NewerFormat

POLICIES = (FsyncPolicy.ALWAYS,) * 8 + (FsyncPolicy.INTERVAL, FsyncPolicy.NEVER)
DELAYS_MS = (0, 0, 0, 1, 1, 2, 5, 20, 100)
DOWNTIMES_MS = (1, 1, 10, 1_000, 60_000)
WALL_JUMPS_MS = (-86_400_000, -3_600_000, -10_000, -1_000, -50, -5, 50, 1_000, 3_600_000, 86_400_000)
WORK_A_TURN = (256, 256, 1, 1, 3)
"""Little, so that a short pipeline takes several turns with others in between, and a unit pauses in its middle."""

ROOM_BYTES = (0, 1_000, 5_000, 40_000, 70_000, 150_000)
STARTS_MAX = 50
FAR_MS = 400 * 86_400_000
"""A wall clock this far off must make no difference to a replay."""

LIFE_S_MAX = 4 * 3600
AUDITOR = 99
LARGE_BYTES = 40_000
"""Length of values a few of which overfill a segment, as far as it is allocated."""


class Simulation:
    """One seed.

    Args:
        seed: of everything.
        trace: told each line of the full event log; None for none.
    """

    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.result = Result()
        self._chance = random.Random(seed)
        self._trace_to = trace
        self._fsync = self._chance.choice(POLICIES)
        self._segment_bytes_max = self._chance.choice((250, 400, 800, 2_000, 8_000))
        self._delays_ms = self._chance.sample(DELAYS_MS, 3)
        self._disk = FakeDisk(seed, allocates=self._chance.random() < 0.8)
        self._disk.torn = random.Random(seed + 1)
        self._faults = Faults(self._disk, self._strike, self._trace if trace else None)
        self._judge = Judge(GROUPS)
        self._books = Books(self._fsync, 2 * max(self._delays_ms))
        self._crowd = Crowd(self._chance, self._books, self.result, lambda: self._world.engine, self._trace)
        self._dead = trio.Event()
        self._world: World

    def run(self) -> Result:
        """Runs it.

        Raises:
            Violation: something happened that must not.
        """
        _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
        _run._r.seed(self._chance.getrandbits(32))
        work_a_turn = performer.TURN_WEIGHT_MAX
        _set_work_a_turn(self._chance.choice(WORK_A_TURN))
        logging.disable(logging.WARNING)  # torn tails are what the crashes are for
        try:
            trio.run(self._main, clock=trio.testing.MockClock(autojump_threshold=0))
        except Exception as error:
            raise _violation(error) from error
        finally:
            logging.disable(logging.NOTSET)
            _set_work_a_turn(work_a_turn)
        return self.result

    # The course of events

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._world = World(
                nursery,
                disk=self._disk,
                limits=LIMITS,
                fsync=self._fsync,
                delays=self._draw_delays,
                segment_bytes_max=self._segment_bytes_max,
                checkpoints=True,
            )
            self._trace(f"{self._fsync}, segments of {self._segment_bytes_max}, delays of {self._delays_ms} ms")
            for _ in range(self._chance.randint(3, 8)):
                await self._start()
                await self._live()
                await self._pause()
            await self._audit()
            nursery.cancel_scope.cancel()
        self.result.virtual_ms = self._now_ms()
        self.result.operations = len(self._books.operations)
        self.result.faults = self._faults.injected

    async def _start(self, *, calm: bool = False) -> None:
        """Starts the engine, again and again until it is up, and holds what it found against the life before."""
        shown: Dump | None = None
        self._flip_a_bit()
        for attempt in range(STARTS_MAX):
            rage = 0.0 if calm or attempt > STARTS_MAX // 2 else 1.0
            self._disk.capacity_bytes, self._disk.is_contested = None, False
            before = self._disk.copy()
            self._faults.arm(draw_plan(self._chance, strikes=0.2 * rage, errors=0.2 * rage, within=12))
            found = await self._try_to_start()
            if found is None:
                await self._pause()
                continue
            self._check_replay(before, found)
            if shown is None:
                shown = found
            invariants.check_shown(shown, found, self._books.latest_ms)
            self._books.show(self._world.wall_ms)
            if self._chance.random() < 0.2 * rage:
                await self._crash(self._chance.choice((End.KILL, End.POWER)))
                continue
            self._begin(shown)
            return
        raise Violation(f"the engine did not start in {STARTS_MAX} attempts")

    def _check_replay(self, before: FakeDisk, found: Dump) -> None:
        """I7, on the disk as the start found it."""
        far_ms = self._chance.choice((-FAR_MS, FAR_MS))
        invariants.check_replay(before, found, self._world.wall_ms + far_ms)
        if self._chance.random() < 0.25:  # once more, on what the first one has mended
            invariants.check_replay(before, found, self._world.wall_ms - far_ms)

    async def _try_to_start(self) -> Dump | None:
        """What a start has found, or None when it failed for a reason."""
        self.result.starts += 1
        self._trace(f"start, wall clock {self._world.wall_ms}")
        self._dead = trio.Event()
        injected = self._faults.injected
        try:
            await self._world.start()
        except (Damage, NewerFormat) as error:
            raise Violation(f"A1: the engine refuses to start: {error}") from error
        except OSError as error:
            self._trace(f"start failed: {error}")
            if not self._dead.is_set() and self._faults.injected == injected:
                raise Violation(f"the engine cannot start: {error!r}") from error
            return None
        if self._dead.is_set():
            await self._world.kill()
            return None
        return self._world.found

    def _flip_a_bit(self) -> None:
        """Damages a copy of what the last life left."""
        if not self._books.lives or self._chance.random() > 0.3:
            return
        # A stop on a full disk leaves no note that it was one.
        clean = read_manifest(self._disk.copy().directory()).clean_close is not None
        if clean or self._fsync is FsyncPolicy.ALWAYS:
            self._trace(invariants.check_damage(self._disk.copy(), self._chance, clean=clean))
            self.result.flips += 1

    def _begin(self, found: Dump) -> None:
        """A life begins; the one before is judged by what it left."""
        if self._books.lives:
            self._judge.finish(found)
        life = self._books.begin(self._now_ms(), self._world.wall_ms)
        self._judge.begin(life)
        self._trace(f"life {life.number}: {found}")

    async def _live(self) -> None:
        """Lets the clients work until the engine ends, in one way or another."""
        excuses = self._faults.excuses
        self._faults.arm(draw_plan(self._chance, strikes=0.6, errors=0.35, within=80))
        if self._faults.may_say_full:
            self._books.life.full_until_ms = math.inf
        async with trio.open_nursery() as nursery:
            self._crowd.set_to_work(nursery, self._chance.randint(5, 60))
            nursery.start_soon(self._watch)
            if self._chance.random() < 0.15:
                nursery.start_soon(self._fill_the_disk)
            if self._chance.random() < 0.3:
                nursery.start_soon(self._move_the_wall_clock)
            if self._chance.random() < 0.3:
                nursery.start_soon(self._ask_for_a_checkpoint)
            with trio.move_on_after(LIFE_S_MAX):
                await _first_of(self._crowd.spent, self._world.ended, self._dead)
            if self._chance.random() < 0.5:
                with trio.move_on_after(self._chance.choice(DELAYS_MS) / 1000):
                    await _first_of(self._world.ended, self._dead)
            await self._end_life(excuses)
            nursery.cancel_scope.cancel()
        self.result.checkpoints += self._world.engine.statistics().checkpoints
        invariants.check_punctuality(self._books.life)

    async def _end_life(self, excuses: int) -> None:
        """Ends a life by a clean stop or a crash, unless it has ended already."""
        life = self._books.life
        end = self._chance.choice((End.STOP, End.STOP, End.KILL, End.POWER))
        if end is End.STOP and not self._world.ended.is_set():
            life.stopping_ms = self._now_ms()
            self._trace("stop")
            await self._world.stop()
        if self._dead.is_set():
            await self._world.kill()
        elif self._world.failure is not None:
            self._trace(f"the engine failed: {self._world.failure}")
            if self._faults.excuses == excuses and not (life.full_until_ms and not self._disk.allocates):
                raise Violation(f"the engine failed without a reason: {_cause(self._world.failure)}")
            self.result.failures += 1
            self._books.close(End.KILL, self._now_ms())
            self._disk.kill()
        elif end is End.STOP:
            self.result.stops += 1
            self._books.close(End.STOP, self._now_ms())
        else:
            await self._crash(end)

    async def _audit(self) -> None:
        """A last, calm life reads everything there is; then its disk becomes full."""
        await self._start(calm=True)
        self._faults.arm(Plan())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refuse_a_failure)
            await self._read_everything()
            if self._disk.allocates:
                await self._fill_and_empty_the_disk()
            nursery.cancel_scope.cancel()
        self._books.life.stopping_ms = self._now_ms()
        await self._world.stop()
        self._books.close(End.STOP, self._now_ms())
        invariants.check_punctuality(self._books.life)
        self._judge.finish(invariants.replayed(self._disk, self._world.wall_ms))
        if self._fsync is FsyncPolicy.ALWAYS:
            invariants.check_accounts(self._books.operations)

    async def _refuse_a_failure(self) -> None:
        await self._world.ended.wait()
        assert self._world.failure is not None
        raise Violation(f"the engine failed without a reason: {_cause(self._world.failure)}")

    async def _read_everything(self) -> None:
        for group in GROUPS:
            for key in group:
                await self._crowd.send(AUDITOR, (b"TTL", key))
                if await self._crowd.send(AUDITOR, (b"GET", key)) == WRONG_TYPE:
                    while await self._crowd.send(AUDITOR, (b"BQPOP", key, b"0")) != NULL:
                        pass

    async def _fill_and_empty_the_disk(self) -> None:
        """What grows may be refused on a full disk, but not for long after there is room again."""
        self._books.life.full_until_ms = math.inf
        self._disk.capacity_bytes = self._disk.used_bytes
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(self._send_large, number)
        self._disk.capacity_bytes = None
        self._books.life.full_until_ms = self._now_ms() + invariants.LATE_MS
        await trio.sleep(invariants.LATE_MS / 1000)
        await self._crowd.send(AUDITOR, (b"SET", b"b", b"there is room"))

    async def _send_large(self, number: int) -> None:
        await trio.sleep(self._chance.choice(DELAYS_MS) / 1000)
        await self._crowd.send(AUDITOR, (b"SET", b"b", b"large %d" % number + LARGE_BYTES * b"x"))

    # The ends

    async def _crash(self, end: End) -> None:
        """A kill or a power cut, now; then the engine's tasks are cleared away."""
        self._die(end)
        await self._world.kill()

    def _strike(self) -> None:
        self._die(self._chance.choice((End.KILL, End.POWER, End.POWER)))

    def _die(self, end: End) -> None:
        """This very moment everything ends: whatever the engine's tasks still do reaches neither disk nor client."""
        self._trace(end.value)
        self._dead.set()
        self._books.close(end, self._now_ms())
        if end is End.KILL:
            self.result.kills += 1
            self._disk.kill()
            return
        self.result.power_cuts += 1
        self._disk.cut_power(random.Random(self._chance.getrandbits(32)) if self._chance.random() < 0.8 else None)
        if self._trace_to is not None:
            self._trace(f"left: {[(name, len(data), zlib.crc32(data)) for name, data in self._disk.content().items()]}")

    async def _pause(self) -> None:
        """Time passes between two lives; the power may fail, and the wall clock may be moved."""
        if self._chance.random() < 0.25:
            self._die(End.POWER)
        await trio.sleep(self._chance.choice(DOWNTIMES_MS) / 1000)
        if self._chance.random() < 0.3:
            self._world.wall_offset_ms += self._chance.choice(WALL_JUMPS_MS)

    # While it lives

    async def _watch(self) -> None:
        """Notes what has reached the store at the end of each instant in which something was sent."""
        while True:
            self._crowd.sent = trio.Event()
            await self._crowd.sent.wait()
            await trio.testing.wait_all_tasks_blocked()
            if not self._dead.is_set() and not self._world.engine.statistics().mailbox:
                self._books.reach(self._now_ms())

    async def _fill_the_disk(self) -> None:
        """The disk becomes full, and after a while there is room again."""
        await trio.sleep(self._chance.choice(DELAYS_MS) / 1000)
        life = self._books.life
        life.full_until_ms = math.inf
        self._disk.capacity_bytes = self._disk.used_bytes + self._chance.choice(ROOM_BYTES)
        self._disk.is_contested = self._chance.random() < 0.5
        self._trace(f"room for {self._disk.free_bytes} bytes{', which others take' * self._disk.is_contested}")
        await trio.sleep(self._chance.choice((1, 20, 500, 5_000)) / 1000)
        self._disk.capacity_bytes, self._disk.is_contested = None, False
        self._trace("room again")
        if not self._faults.may_say_full:
            life.full_until_ms = self._now_ms() + invariants.LATE_MS

    async def _ask_for_a_checkpoint(self) -> None:
        await trio.sleep(self._chance.choice(DELAYS_MS) / 1000)
        with suppress(FoldFailed):
            await self._world.engine.checkpoint()

    async def _move_the_wall_clock(self) -> None:
        """Nobody looks at it while the engine runs."""
        await trio.sleep(self._chance.choice(DELAYS_MS) / 1000)
        self._world.wall_offset_ms += self._chance.choice(WALL_JUMPS_MS)

    def _draw_delays(self) -> tuple[float, float]:
        """How long a commit takes: until it reaches the disk, and from there on."""
        after_ms = self._chance.choice(self._delays_ms) if self._chance.random() < 0.3 else 0
        return self._chance.choice(self._delays_ms) / 1000, after_ms / 1000

    def _now_ms(self) -> int:
        return round(trio.current_time() * 1000)

    def _trace(self, line: str) -> None:
        if self._trace_to is not None:
            self._trace_to(f"{self._now_ms():>10} {line}")


async def _first_of(*events: trio.Event) -> None:
    """Waits until one of them is set."""
    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(_cancel_after, event, nursery.cancel_scope)


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def _set_work_a_turn(weight: int) -> None:
    for module in (performer, actor):
        vars(module)["TURN_WEIGHT_MAX"] = weight


def _cause(error: BaseException) -> BaseException:
    """The first error in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _violation(error: BaseException) -> Violation:
    """The violation in an error; any other error is one."""
    error = _cause(error)
    if isinstance(error, Violation):
        return error
    if isinstance(error, (Damage, NewerFormat)):  # by a checkpoint, or when it was replayed once more
        return Violation(f"damage was found where there is none: {error}")
    return Violation("".join(traceback.format_exception(error)))


def run_seed(seed: int) -> tuple[int, Result, str]:
    """Runs one seed: it, its sums, and what was violated, or nothing."""
    simulation = Simulation(seed)
    try:
        return seed, simulation.run(), ""
    except Violation as violation:
        return seed, simulation.result, str(violation)
