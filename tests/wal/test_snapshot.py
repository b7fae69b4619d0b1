"""Snapshots: every state comes back as it was, and a file that is not as it was written is refused."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from engine.embedded.fold import fold
from engine.store import ops
from engine.store.state import State
from tests.harness import logs
from tests.harness.disk import FakeDisk
from tests.harness.logs import COMMITS, DUMPS, TIME_MS
from wal import snapshot as snapshots
from wal.frame import HEAD_BYTES
from wal.log import Log
from wal.manifest import MANIFEST_NAME, Snapshot, read_manifest, write_manifest
from wal.segment import HEADER_BYTES, SNAPSHOT_MAGIC, Damage, NewerFormat, decode_header, with_crc
from wal.snapshot import FoldPlan

FOLDED = logs.folded().content()
NAME = next(name for name in FOLDED if name.endswith(".snapshot"))


def disk_of(files: dict[str, bytes]) -> FakeDisk:
    disk = FakeDisk()
    for name, data in files.items():
        disk.put(name, data)
    return disk


def refused(disk: FakeDisk) -> Damage:
    """Starts, which must refuse and change nothing; returns what it said."""
    before = disk.content()
    disk.log.clear()
    with pytest.raises(Damage) as caught:
        logs.start(disk)
    assert disk.content() == before
    assert logs.changes(disk) == []
    assert "Nothing was changed on disk" in str(caught.value)
    return caught.value


def flips(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Each bit flipped, one at a time: the byte's offset, and the data."""
    for at in range(len(data)):
        for bit in range(8):
            yield at, data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def written(disk: FakeDisk, *commits: tuple[ops.Op, ...]) -> Log:
    """A log with these commits, open."""
    _, log = logs.start(disk)
    for commit in commits:
        logs.append(log, commit)
        log.commit()
    return log


def test_the_directory_under_test_has_a_snapshot_and_segments_after_it() -> None:
    assert NAME == "00000002.snapshot"
    assert sorted(FOLDED) == [NAME, "00000003.log", MANIFEST_NAME]
    assert logs.dump(disk_of(FOLDED)) == DUMPS[-1]


# Round trips

STATES: dict[str, tuple[ops.Op, ...]] = {
    "a plain value": ((ops.PUT, b"k", b"v", None),),
    "an empty key and value": ((ops.PUT, b"", b"", None),),
    "no UTF-8": ((ops.PUT, b"\xff\x00", bytes(range(256)), None),),
    "a deadline": ((ops.PUT, b"k", b"v", TIME_MS + 1),),
    "a deadline long past": ((ops.PUT, b"k", b"v", 1), (ops.PUT, b"l", b"v", 0)),
    "a queue": ((ops.PUSH, b"q", (b"a", b"", b"a")),),
    "an emptied queue": ((ops.PUSH, b"q", (b"a",)), (ops.POP_LAST, b"q")),
    "a queue after returns": ((ops.PUSH, b"q", (b"a",)), (ops.POP_LAST, b"q"), (ops.RETURN_FIRST, b"q", b"a")),
    "a queue of many values": ((ops.PUSH, b"q", tuple(b"%d" % number for number in range(2_500))),),
    "a queue of large values": ((ops.PUSH, b"q", tuple(bytes([number]) * 700_000 for number in range(4))),),
    "a value of three frames": ((ops.PUT, b"k", b"x" * 3_000_000, None), (ops.PUT, b"l", b"v", None)),
    "a key written over by a queue": ((ops.PUT, b"k", b"v", 5), (ops.REMOVE, b"k"), (ops.PUSH, b"k", (b"a",))),
    "a removed key": ((ops.PUT, b"k", b"v", None), (ops.REMOVE, b"k")),
    "many keys": tuple((ops.PUT, b"%d" % number, b"v" * (number % 50), None) for number in range(3_000)),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_every_state_comes_back_as_it_was(state: tuple[ops.Op, ...]) -> None:
    """I7"""
    disk = FakeDisk()
    log = written(disk, state)
    expected = State()
    for op in state:
        expected.apply(op)
    for _ in range(2):  # a snapshot of segments, then one of a snapshot
        assert logs.checkpoint(disk, log)
        log.abandon()
        found, log = logs.start(disk)
        assert found == list(expected.dump())
        logs.append(log, ((ops.PUT, b"zz", b"", None), (ops.REMOVE, b"zz")))
        log.commit()
    log.close()
    assert logs.dump(disk) == list(expected.dump())


def test_a_state_of_nothing_at_all_comes_back() -> None:
    disk = FakeDisk()
    log = written(disk, ((ops.PUT, b"k", b"v", None),), ((ops.REMOVE, b"k"),))
    logs.checkpoint(disk, log)
    log.close()
    assert len(disk.get("00000001.snapshot")) == HEADER_BYTES
    assert logs.dump(disk) == []
    assert logs.goes_on(disk)


def test_random_states_come_back_through_any_number_of_checkpoints() -> None:
    """I7"""
    chance = random.Random(3)
    disk, expected = FakeDisk(), State()
    log = written(disk)
    for turn in range(60):
        key = b"%d" % chance.randrange(5)
        queue = expected.queue(key)
        effects: list[ops.Op] = [(ops.PUT, key, chance.randbytes(chance.randrange(40)), chance.choice((None, turn)))]
        if queue is not None:
            effects = [(ops.PUSH, key, (chance.randbytes(5), b"")), (ops.REMOVE, key)]
            effects += [(ops.POP_FIRST, key), (ops.POP_LAST, key)] if queue else []
        elif not [entry for entry in expected.dump() if entry[1] == key]:
            effects.append((ops.PUSH, key, (b"first",)))
        effect = chance.choice(effects)
        logs.append(log, (effect,))
        log.commit()
        expected.apply(effect)
        if chance.random() < 0.3:
            logs.checkpoint(disk, log)
        if chance.random() < 0.3:
            log.close() if chance.random() < 0.5 else log.abandon()
            found, log = logs.start(disk)
            assert found == list(expected.dump())


def test_the_time_of_the_last_commit_is_kept_when_its_segment_was_folded() -> None:
    """D2: engine time never goes back behind it."""
    disk = FakeDisk()
    log = written(disk)
    logs.append(log, ((ops.PUT, b"k", b"v", None),), TIME_MS + 5_000)
    log.commit()
    logs.checkpoint(disk, log)
    log.close()
    _, log = logs.start(disk)
    assert (log.recovery.time_ms, log.recovery.records, log.last_lsn) == (TIME_MS + 5_000, 1, 1)
    logs.append(log, ((ops.REMOVE, b"k"),), TIME_MS + 6_000)
    log.commit()
    logs.checkpoint(disk, log)
    log.close()
    _, log = logs.start(disk)
    assert (log.recovery.time_ms, log.recovery.records, log.last_lsn) == (TIME_MS + 6_000, 0, 2)


def test_two_folds_of_one_plan_write_the_same_bytes() -> None:
    """I7, D4: nothing but what was logged is in them."""
    disk = FakeDisk()
    log = written(disk, *COMMITS)
    log.seal()
    plan = log.plan_fold()
    assert plan is not None
    found = []
    for _ in range(2):
        entry = fold(disk.beside(), FoldPlan.unpack(plan.pack()))
        found.append((entry, disk.get(plan.temporary_name)))
        disk.beside().remove(plan.temporary_name)
    assert found[0] == found[1]
    assert found[0][0].size_bytes == len(found[0][1])
    state = State()
    for op in State.snapshot_ops(_state(COMMITS)):
        state.apply(op)
    assert list(state.dump()) == DUMPS[-1]


def _state(commits: tuple[tuple[ops.Op, ...], ...]) -> State:
    state = State()
    for commit in commits:
        for op in commit:
            state.apply(op)
    return state


# Reading in blocks


@pytest.mark.parametrize("read_bytes", [HEAD_BYTES, 13, 50, 64, 97, 1000])
def test_a_snapshot_is_read_block_by_block(monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    """A16: frames may be longer than a block, or end where one does."""
    monkeypatch.setattr(snapshots, "FRAME_BYTES_GOAL", 60)
    disk = FakeDisk()
    values = [(ops.PUT, b"%02d" % number, b"v" * (number % 7 * 30), None) for number in range(40)]
    log = written(disk, tuple(values))
    logs.checkpoint(disk, log)
    log.close()
    monkeypatch.setattr(snapshots, "READ_BYTES", read_bytes)
    assert logs.dump(disk) == [("value", op[1], op[2], None) for op in values]
    data = disk.get("00000001.snapshot")
    for at in range(0, len(data), 41):
        disk.put("00000001.snapshot", data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        damage = refused(disk)
        assert damage.file == "00000001.snapshot"
        assert damage.offset <= at


def test_damage_in_a_large_snapshot_is_told_without_reading_all_of_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A16"""
    monkeypatch.setattr(snapshots, "FRAME_BYTES_GOAL", 1000)
    monkeypatch.setattr(snapshots, "READ_BYTES", 4000)
    disk = FakeDisk()
    log = written(disk, tuple((ops.PUT, b"%04d" % number, b"v" * 100, None) for number in range(2_000)))
    logs.checkpoint(disk, log)
    log.close()
    data = disk.get("00000001.snapshot")
    disk.put("00000001.snapshot", data[:5_000] + bytes([data[5_000] ^ 1]) + data[5_001:])
    counts: list[int] = []
    directory = disk.directory()
    read = directory.read

    def counting(name: str, offset: int = 0, count: int | None = None) -> bytes:
        found = read(name, offset, count)
        counts.append(len(found))
        return found

    monkeypatch.setattr(directory, "read", counting)
    with pytest.raises(Damage):
        Log.recover(directory, lambda _frame: None, time_ms=TIME_MS)
    assert max(counts) <= 16_000


# What is refused


def test_a_flipped_bit_of_a_snapshot_is_refused() -> None:
    """A2: every bit of it, and of the manifest that names it."""
    for name in (NAME, MANIFEST_NAME):
        for at, flipped in flips(FOLDED[name]):
            damage = refused(disk_of(FOLDED | {name: flipped}))
            assert damage.file == name
            assert damage.offset <= at


def test_a_snapshot_that_was_cut_or_has_grown_is_refused() -> None:
    """A11, A5: also where a frame ends, and also if what follows are zeros or another snapshot."""
    data = FOLDED[NAME]
    for other in [data[:size] for size in range(len(data))] + [data + b"\0", data + bytes(4096), data + data]:
        damage = refused(disk_of(FOLDED | {NAME: other}))
        assert damage.file == NAME
        assert damage.offset <= len(other)


def test_a_snapshot_of_many_frames_cut_where_one_ends_is_told_by_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A11"""
    monkeypatch.setattr(snapshots, "FRAME_BYTES_GOAL", 10)
    disk = FakeDisk()
    log = written(disk, *COMMITS)
    logs.checkpoint(disk, log)
    log.close()
    name = next(name for name in disk.names if name.endswith(".snapshot"))
    data = disk.get(name)
    mark = data[HEADER_BYTES : HEADER_BYTES + 4]
    ends = [at for at in range(HEADER_BYTES, len(data)) if data.startswith(mark, at)]
    assert len(ends) >= 3
    for end in ends:
        disk.put(name, data[:end])
        assert f"the snapshot has {end} bytes, the manifest says {len(data)}" in refused(disk).reason


def test_a_missing_snapshot_is_refused() -> None:
    """A8"""
    damage = refused(disk_of({name: data for name, data in FOLDED.items() if name != NAME}))
    assert (damage.file, damage.reason) == (NAME, "the snapshot is missing")


def test_the_segments_after_a_snapshot_are_refused_if_the_first_is_missing() -> None:
    """A8"""
    damage = refused(disk_of({name: data for name, data in FOLDED.items() if name != "00000003.log"}))
    assert damage.file == "00000003.log"


def test_the_snapshot_of_another_store_is_refused() -> None:
    """A9"""
    other = FakeDisk(seed=5)
    log = written(other, *COMMITS[:6])
    logs.checkpoint(other, log)
    foreign = next(data for name, data in other.content().items() if name.endswith(".snapshot"))
    damage = refused(disk_of(FOLDED | {NAME: foreign}))
    assert (damage.file, damage.reason) == (NAME, "the snapshot is not the one that the manifest names")


def two_snapshots() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """One store after a checkpoint, and after the next one, of the same segment number at first sight."""
    disk = FakeDisk()
    log = written(disk, *COMMITS[:2])
    logs.checkpoint(disk, log)
    first = disk.content()
    for commit in COMMITS[2:4]:
        logs.append(log, commit)
        log.commit()
    logs.checkpoint(disk, log)
    log.close()
    return first, disk.content()


def test_an_older_snapshot_under_the_name_of_the_newer_is_refused() -> None:
    """A9"""
    first, second = two_snapshots()
    (old,) = (name for name in first if name.endswith(".snapshot"))
    (new,) = (name for name in second if name.endswith(".snapshot"))
    assert old != new
    assert refused(disk_of(second | {new: first[old]})).file == new


def test_an_older_manifest_and_snapshot_are_refused() -> None:
    """A8, A9: the segments between are gone, or do not fit."""
    first, second = two_snapshots()
    old = {name: data for name, data in first.items() if name == MANIFEST_NAME or name.endswith(".snapshot")}
    refused(disk_of(second | old))


def test_a_copy_of_the_store_that_went_on_by_itself_cannot_lend_its_snapshot() -> None:
    """A9"""
    disk = FakeDisk()
    written(disk, *COMMITS[:2]).close()
    fork = disk_of(disk.content())
    fork.random_bytes(99)
    found = []
    for one in (disk, fork):
        _, log = logs.start(one)
        logs.checkpoint(one, log)
        log.close()
        found.append(one.content())
    name = next(name for name in found[0] if name.endswith(".snapshot"))
    assert refused(disk_of(found[0] | {name: found[1][name]})).file == name


@pytest.mark.parametrize("number", [1, 2, 3, 9])
def test_a_segment_under_a_snapshots_name_and_the_reverse_are_refused(number: int) -> None:
    """A9"""
    assert refused(disk_of(FOLDED | {NAME: FOLDED["00000003.log"]})).file == NAME
    name = f"{number:08}.log"
    assert refused(disk_of(FOLDED | {name: FOLDED[NAME]})).file == name


@pytest.mark.parametrize("number", [1, 3, 9])
def test_a_snapshot_of_another_store_beside_the_log_is_refused_and_not_removed(number: int) -> None:
    """A9, A14: what a checkpoint of this store left goes; this is none."""
    other = FakeDisk(seed=5)
    log = written(other, *COMMITS[:6])
    logs.checkpoint(other, log)
    foreign = next(data for name, data in other.content().items() if name.endswith(".snapshot"))
    name = f"{number:08}.snapshot"
    damage = refused(disk_of(FOLDED | {name: foreign}))
    assert (damage.file, damage.reason) == (name, "the manifest does not name this snapshot")


def test_a_snapshot_without_a_manifest_is_refused() -> None:
    """A8"""
    assert refused(disk_of({NAME: FOLDED[NAME]})).file == MANIFEST_NAME


def test_a_snapshot_of_a_newer_format_is_refused_and_not_touched() -> None:
    """A13"""
    newer = bytearray(FOLDED[NAME][: HEADER_BYTES - 4])
    newer[8] = 2
    disk = disk_of(FOLDED | {NAME: with_crc(bytes(newer)) + FOLDED[NAME][HEADER_BYTES:]})
    before = disk.content()
    with pytest.raises(NewerFormat, match=NAME):
        logs.start(disk)
    assert disk.content() == before


def test_records_of_a_snapshot_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A12"""
    disk = FakeDisk()
    log = written(disk, *COMMITS[:1])
    log.seal()
    plan = log.plan_fold()
    assert plan is not None
    beside = disk.beside()
    entry: Snapshot = snapshots.write_snapshot(beside, plan, [ops.pack((ops.REMOVE, b"unknown"))], TIME_MS)
    log.install(plan, entry)
    log.abandon()
    damage = refused(disk)
    assert (damage.file, damage.offset) == (plan.name, HEADER_BYTES)
    assert "cannot be applied" in damage.reason


def test_a_manifest_that_states_another_length_is_refused() -> None:
    """A11"""
    disk = disk_of(FOLDED)
    directory = disk.directory()
    manifest = read_manifest(directory)
    assert manifest.snapshot is not None
    size_bytes = manifest.snapshot.size_bytes
    snapshot = Snapshot(manifest.snapshot.number, manifest.snapshot.snapshot_id, size_bytes + 1, TIME_MS)
    write_manifest(directory, type(manifest)(manifest.store_id, manifest.segments, manifest.clean_close, snapshot))
    directory.close()
    assert f"the snapshot has {size_bytes} bytes, the manifest says {size_bytes + 1}" in refused(disk).reason


def test_a_snapshots_header_says_what_the_next_segments_header_says() -> None:
    """A8"""
    header = decode_header(FOLDED[NAME], "", NAME, 0, SNAPSHOT_MAGIC)
    after = decode_header(FOLDED["00000003.log"], "", "00000003.log", 0)
    assert (header.first_lsn, header.previous_id, header.previous_bytes) == (
        after.first_lsn,
        after.previous_id,
        after.previous_bytes,
    )
