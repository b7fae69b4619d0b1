"""Repairing: what comes out is a state that once was, nothing more is lost than must be, and everything is kept."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from engine.embedded.recovery import applying
from engine.store import ops
from engine.store.state import State
from tests.harness import damage, logs
from tests.harness.damage import HEALTHY, STATES, Files, disk_of, states
from tests.harness.disk import FakeDisk
from tests.harness.logs import TIME_MS
from wal.manifest import MANIFEST_NAME, decode_manifest
from wal.segment import HEADER_BYTES, Damage
from wal.tools.repair import CannotRepair, Plan, plan_repair, repair
from wal.tools.view import NoLog

CRASHED, CLOSED = HEALTHY["crashed"], HEALTHY["closed"]
FOLDED = HEALTHY["closed with snapshot"]
FIRST, MIDDLE, LAST = damage.segments(CLOSED)
SNAPSHOT = next(name for name in FOLDED if name.endswith(".snapshot"))


def plan_for(disk: FakeDisk) -> Plan:
    """Plans a repair, which changes nothing."""
    before, done = disk.content(), len(logs.changes(disk))
    directory = disk.beside()
    try:
        return plan_repair(directory, lambda: applying(State()), lambda _done, _total: None)
    finally:
        directory.close()
        assert disk.content() == before
        assert len(logs.changes(disk)) == done


def mend(disk: FakeDisk, plan: Plan) -> list[str]:
    directory = disk.directory()
    try:
        return repair(directory, plan, TIME_MS)
    finally:
        directory.close()


def broken(files: Files, name: str, at: int) -> Files:
    data = files[name]
    return files | {name: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]}


def without(files: Files, *names: str) -> Files:
    return {name: data for name, data in files.items() if name not in names}


def repairable(which: str) -> Iterator[tuple[str, Files, Plan]]:
    """Every damaged log that can be repaired, with the plan."""
    for name, files in damage.damaged(which):
        try:
            plan = plan_for(disk_of(files))
        except (CannotRepair, NoLog):
            continue
        if plan.damage:
            yield name, files, plan


@pytest.mark.parametrize("which", HEALTHY)
def test_what_comes_out_is_the_longest_state_before_the_damage_and_everything_is_kept(which: str) -> None:
    """A17: after a repair a server starts on exactly what the plan said."""
    repaired = 0
    for name, files, plan in repairable(which):
        disk = disk_of(files)
        kept = mend(disk, plan)
        last_lsn = plan.after.last_lsn
        if last_lsn < max(STATES[which]) and plan.after.torn is None:
            assert last_lsn == max(lsn for lsn in STATES[which] if lsn < plan.damage[-1].lsn), name
        assert logs.dump(disk) == STATES[which][last_lsn], name
        assert repaired % 10 or logs.goes_on(disk), name
        originals = {copy.split(".damaged-")[0]: disk.get(copy) for copy in kept}
        assert originals == {one: files[one] for one in (*plan.changed, *plan.removed) if one in files}, name
        repaired += 1
    assert repaired > 150


@pytest.mark.parametrize("which", ["crashed", "closed"])
def test_only_the_end_of_a_log_that_was_not_closed_goes_without_being_agreed_to(which: str) -> None:
    """A17: whatever loses records that stand before others, or were on disk at a clean close, has to be agreed to."""
    files = HEALTHY[which]
    for name, damaged in damage.flips(files):
        plan = plan_for(disk_of(damaged))
        lost = set(plan.lost)
        if not plan.damage:
            continue
        nothing_proves_them = not lost or (lost <= set(range(11, 13)) and which == "crashed")
        assert bool(plan.reasons) == (not nothing_proves_them), name


def test_the_plan_says_which_records_go_and_of_which_kind_the_readable_ones_are() -> None:
    plan = plan_for(disk_of(broken(CLOSED, MIDDLE, 120)))
    assert [(one.file, one.offset, one.lsn) for one in plan.damage] == [(MIDDLE, 106, 6)]
    assert plan.lost == range(6, 13)
    assert plan.loss.records == {
        ops.RETURN_LAST: 1,
        ops.RETURN_FIRST: 1,
        ops.REMOVE: 1,
        ops.PUSH: 1,
        ops.EXPIRE: 1,
        ops.PUT: 1,
    }
    assert [(step.file, step.what) for step in plan.steps] == [
        (MIDDLE, "is cut at offset 106, of 177 bytes"),
        (MANIFEST_NAME, f"is written anew and names {FIRST} to {MIDDLE}"),
        (LAST, "is set aside"),
    ]
    assert len(plan.reasons) == 1
    assert plan.after.last_lsn == 5


def test_the_lost_last_commit_of_a_clean_close_is_known_by_the_footer() -> None:
    plan = plan_for(disk_of(CLOSED | {LAST: CLOSED[LAST][:106]}))
    assert (plan.lost, plan.loss.records.total()) == (range(11, 13), 0)
    assert plan.reasons == ["the log was closed cleanly, so every record was on disk, the last ones too"]


def test_after_a_clean_close_any_cut_of_the_last_segment_has_to_be_agreed_to() -> None:
    """A17: the footer proves of each record that it had been on disk."""
    for length in range(HEADER_BYTES, len(CLOSED[LAST])):
        plan = plan_for(disk_of(CLOSED | {LAST: CLOSED[LAST][:length]}))
        assert plan.lost, length
        assert len(plan.reasons) == 1, length


def test_a_whole_log_and_a_torn_tail_need_no_repair() -> None:
    assert plan_for(disk_of(CLOSED)).damage == []
    plan = plan_for(disk_of(CRASHED | {LAST: CRASHED[LAST][:-1]}))
    assert (plan.damage, plan.steps) == ([], [])
    assert plan.after.torn is not None
    with pytest.raises(NoLog):
        plan_for(disk_of({}))


@pytest.mark.parametrize("name", [FIRST, MIDDLE, LAST])
def test_a_header_is_written_anew_and_nothing_goes(name: str) -> None:
    for at in range(HEADER_BYTES):
        disk = disk_of(broken(CLOSED, name, at))
        plan = plan_for(disk)
        assert (plan.lost, plan.reasons, plan.changed) == (range(13, 13), [], {name: CLOSED[name]})
        mend(disk, plan)
        assert logs.dump(disk) == STATES["closed"][12]


@pytest.mark.parametrize("which", HEALTHY)
def test_a_manifest_is_put_together_from_the_headers_and_nothing_goes(which: str) -> None:
    for files in (without(HEALTHY[which], MANIFEST_NAME), HEALTHY[which] | {MANIFEST_NAME: b"HOLDFAST"}):
        disk = disk_of(files)
        plan = plan_for(disk)
        assert (list(plan.lost), plan.reasons) == ([], [])
        assert "nobody can tell" in plan.caveats[0]
        mend(disk, plan)
        assert logs.dump(disk) == STATES[which][12]
        old, new = (decode_manifest(data[MANIFEST_NAME], "") for data in (HEALTHY[which], disk.content()))
        assert (old.store_id, old.segments, old.snapshot) == (new.store_id, new.segments, new.snapshot)


def test_a_manifest_that_is_older_than_the_log_is_brought_up_to_date() -> None:
    """The one of an older copy, put over a log that was folded, rolled, or both since: nothing goes."""
    folded = disk_of(CRASHED)
    _, log = logs.start(folded)
    damage.checkpoint(log, folded.beside())
    log.abandon()
    disk = disk_of(CRASHED)
    _, log = logs.start(disk)
    for number in range(6):
        logs.append(log, ((ops.PUT, b"later", b"%d" % number, None),))
        log.commit()
    rolled = disk.content()
    log.seal()
    damage.checkpoint(log, disk.beside())
    log.abandon()
    for files in (folded.content(), rolled, disk.content()):
        assert set(files) != set(CRASHED)
        old = disk_of(files | {MANIFEST_NAME: CRASHED[MANIFEST_NAME]})
        plan = plan_for(old)
        assert (list(plan.lost), plan.reasons) == ([], [])
        mend(old, plan)
        assert logs.dump(old) == max(states(files).items())[1]


@pytest.mark.parametrize("missing", [False, True])
def test_what_an_interrupted_checkpoint_left_takes_the_place_of_a_snapshot_that_is_damaged_or_missing(
    *, missing: bool
) -> None:
    disk = disk_of(CLOSED)
    _, log = logs.start(disk)
    log.seal()
    before = {name: data for name, data in disk.content().items() if name.endswith(".log")}
    damage.checkpoint(log, disk.beside())
    log.close()
    files = disk.content()
    snapshot = next(name for name in files if name.endswith(".snapshot"))
    assert not set(before) <= set(files)
    files = before | (without(files, snapshot) if missing else broken(files, snapshot, 80))
    plan = plan_for(disk_of(files))
    assert (list(plan.lost), plan.reasons) == ([], [])
    assert [step.file for step in plan.steps] == ([MANIFEST_NAME] if missing else [MANIFEST_NAME, snapshot])
    mended = disk_of(files)
    mend(mended, plan)
    assert logs.dump(mended) == STATES["closed"][12]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (without(CLOSED, FIRST), "restore a backup"),
        (CLOSED | {FIRST: b""}, "restore a backup"),
        (broken(FOLDED, SNAPSHOT, 80), "restore a backup"),
        (without(FOLDED, SNAPSHOT), "restore a backup"),
        (FOLDED | {SNAPSHOT: FOLDED[SNAPSHOT][:-1]}, "restore a backup"),
        (without(CLOSED, FIRST, MANIFEST_NAME), "belong together"),
        (without(FOLDED, SNAPSHOT, MANIFEST_NAME), "belong together"),
        (CLOSED | {MANIFEST_NAME: b"", FIRST: FOLDED[damage.segments(FOLDED)[0]]}, "belong together"),
    ],
    ids=str,
)
def test_when_the_beginning_is_gone_it_is_refused(files: Files, reason: str) -> None:
    with pytest.raises(CannotRepair, match=reason):
        plan_for(disk_of(files))


def test_a_missing_segment_behind_the_damage_has_to_be_agreed_to_though_nothing_of_it_can_be_read() -> None:
    plan = plan_for(disk_of(without(broken(CLOSED, MIDDLE, 170), LAST)))
    assert [one.file for one in plan.damage] == [MIDDLE]
    assert plan.reasons == [f"{MIDDLE} is not the last segment"]


def test_without_a_manifest_a_segment_that_follows_another_one_is_set_aside() -> None:
    """A9: it is from another life of the same store."""
    fork = disk_of(without(CRASHED, LAST) | {MANIFEST_NAME: b""})
    mend(fork, plan_for(fork))
    fork.random_bytes(99)
    _, log = logs.start(fork)
    for number in range(8):
        logs.append(log, ((ops.PUT, b"key", b"%d" % number, None),))
    log.close()
    later = sorted(set(fork.segments()) - set(CRASHED))[0]
    plan = plan_for(disk_of(without(CRASHED, MANIFEST_NAME) | {later: fork.get(later)}))
    assert plan.removed == [later]
    assert plan.reasons == [f"{later} was a part of this log at some time"]
    assert plan.after.last_lsn == 12


def test_a_segment_of_another_store_is_set_aside_without_more_and_one_of_this_log_has_to_be_agreed_to() -> None:
    """A9"""
    other = FakeDisk(seed=1)
    logs.write(other, clean=True)
    plan = plan_for(disk_of(CLOSED | {"00000004.log": other.get(FIRST)}))
    assert (plan.removed, plan.reasons, list(plan.lost)) == (["00000004.log"], [], [])
    fork, origin = disk_of(CRASHED), disk_of(CRASHED)
    fork.random_bytes(99)
    for disk in (fork, origin):
        _, log = logs.start(disk)
        for number in range(8):
            logs.append(log, ((ops.PUT, b"key", b"%d" % number, None),))
        log.close()
    later = sorted(set(origin.segments()) - set(CRASHED))
    assert len(later) > 1
    both = without(origin.content(), later[-1]) | {later[-1]: fork.get(later[-1])}
    plan = plan_for(disk_of(both))
    assert f"{later[-1]} is another file" in plan.reasons


@pytest.mark.parametrize(
    "files",
    [
        broken(CLOSED, FIRST, 120),
        broken(CLOSED, MIDDLE, 120),
        broken(CLOSED, LAST, 120),
        broken(CLOSED, MIDDLE, 20),
        without(CLOSED, MIDDLE),
        without(CLOSED, MANIFEST_NAME),
        broken(FOLDED, damage.segments(FOLDED)[0], 80),
        CLOSED | {"00000004.log": CLOSED[FIRST]},
    ],
    ids=["first", "middle", "last", "header", "missing", "manifest", "folded", "stranger"],
)
def test_a_crash_at_any_moment_leaves_what_refuses_or_is_repaired_and_the_next_repair_comes_to_the_same(
    files: Files,
) -> None:
    whole = disk_of(files)
    plan = plan_for(whole)
    mend(whole, plan)
    expected = logs.dump(whole)
    for cut in (True, False):
        moment = 0
        while True:
            disk = disk_of(files)
            logs.at_change(disk, moment, disk.cut_power if cut else disk.kill)
            try:
                mend(disk, plan)
                break
            except OSError:
                pass
            moment += 1
            disk.fault = None
            assert set(files.values()) <= set(disk.content().values()), "every byte is still there, under some name"
            try:
                assert logs.dump(disk.copy()) == expected
            except Damage:
                assert expected_after(disk) == expected
        assert moment >= 3


def expected_after(disk: FakeDisk) -> logs.Dump:
    """What a second repair comes to."""
    mend(disk, plan_for(disk))
    return logs.dump(disk)


def test_nothing_is_written_into_a_file_that_is_there_because_a_backup_may_share_it() -> None:
    disk = disk_of(broken(CLOSED, MIDDLE, 120))
    mend(disk, plan_for(disk))
    assert "open" not in {operation for operation, _ in disk.log}
    renamed = [name for operation, name in disk.log if operation == "rename"]
    assert renamed.index(MANIFEST_NAME) == len(renamed) - 1, "the manifest comes last"


def test_where_files_cannot_have_two_names_they_are_copied() -> None:
    disk = disk_of(broken(CLOSED, MIDDLE, 120))
    before = disk.get(MIDDLE)
    plan = plan_for(disk)

    def fault(operation: str, _name: str) -> None:
        if operation == "link":
            raise OSError(errno.EPERM, "Operation not permitted")

    disk.fault = fault
    kept = mend(disk, plan)
    assert disk.get(kept[0]) == before
    disk.fault = None
    assert logs.dump(disk) == STATES["closed"][5]


def test_two_repairs_in_the_same_millisecond_keep_two_copies() -> None:
    disk = disk_of(broken(CLOSED, LAST, 140))
    first = mend(disk, plan_for(disk))
    disk.put(LAST, disk.get(LAST)[:-1] + b"?")
    disk.put(MANIFEST_NAME, b"")
    second = mend(disk, plan_for(disk))
    assert not set(first) & set(second)
