"""The bugs of the drill, each as the lines it would be: the fifteen that were asked for, and more that looked likely.

A bug stands here with what it would be in real life, and with what the simulator may say about it; for a few the
simulator is not the one to ask, and a test finds them.
"""

from __future__ import annotations

from engine.embedded.actor import Actor
from engine.embedded.answers import Answers
from engine.embedded.committer import Committer
from engine.embedded.engine import Engine
from engine.embedded.performer import Performer
from engine.embedded.pops import Pops
from engine.embedded.recovery import recover
from engine.embedded.sweeper import Sweeper
from engine.store.state import State
from engine.store.store import Store
from engine.store.waiters import Waiters
from tests.drill.batches import BATCHES
from tests.drill.plant import HISTORY, UNREADABLE, Bug, Edit, Kind
from wal.checkpoint import install, remove_folded
from wal.frame import Scan
from wal.log import Log
from wal.log_files import LogFiles
from wal.manifest import begin_manifest, write_manifest
from wal.open_segment import OpenSegment
from wal.recovery import _create, _reopen
from wal.replay import mend
from wal.segment import SegmentHeader, finish_file
from wal.spare import Spare

THE_FIFTEEN: tuple[Bug, ...] = (
    Bug(
        "acknowledge before sync",
        "Answers leave when their group is on its way, not when it is on disk; etcd did so for years, and most"
        " stores still do unless told otherwise.",
        (
            Edit(
                Committer.run,
                "await self._commit(group)",
                """
                planted()
                await self._release_all(group.answers)
                await self._commit(group)
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "no directory sync",
        "A new file is synced, its name is not: after a power cut segments and manifests are gone. LevelDB, and most"
        " that were looked at by ALICE (OSDI 2014).",
        (
            Edit(finish_file, "directory.sync()", "planted()"),
            Edit(write_manifest, "directory.sync()", "planted()"),
            Edit(LogFiles.replace_manifest, "self.directory.sync()", "planted()"),
            Edit(LogFiles.roll_to, "self.directory.sync()", "planted()"),
            Edit(Spare.prepare, "self._directory.sync()", "planted()"),
        ),
        (*HISTORY, Kind.SHOWN, *UNREADABLE),
    ),
    Bug(
        "retry a failed sync",
        "A later fdatasync succeeds, because the kernel took the pages for clean after the first: PostgreSQL for 20"
        " years (fsyncgate, 2018), MySQL, MongoDB.",
        (
            Edit(
                OpenSegment.sync,
                "self._file.sync()",
                """
                for patience in reversed(range(10)):
                    try:
                        self._file.sync()
                        break
                    except OSError:
                        if not patience:
                            raise
                        planted()
                """,
            ),
        ),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "value lost on cancelled pop",
        "The client of a pop leaves before its answer, and nobody puts the value back: BLPOP of Redis by design, many a"
        " wrapper around a queue by accident.",
        (Edit(Pops.abandon, "self._abandoned += call.taken", "call.taken and planted()"),),
        (*HISTORY, Kind.LOST),
    ),
    Bug(
        "double delivery",
        "A waiter is served from memory, and its pop is not logged: after a crash the value is delivered once more."
        " Redis had it on its replicas, when blocked pops were served in a script.",
        (
            Edit(
                Pops._serve,
                "self._effects.apply_one(pop)",
                """
                planted()
                self._state.apply(pop)
                """,
            ),
        ),
        (*HISTORY, Kind.TWICE, *UNREADABLE),
    ),
    Bug(
        "read of unsynced data",
        "A read needs no disk, so it is answered at once, with what a power cut takes back.",
        (
            Edit(
                Actor._answer,
                "self.answers.hold(call, reply)",
                """
                planted()
                self.answers.give(call, reply)
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "reused segment",
        "A folded segment becomes the next spare as it is, and nothing in a frame says which segment and which place"
        " it belongs to: what it held is replayed once more. Three lines, because three layers stand against it.",
        (
            Edit(
                remove_folded,
                "directory.remove(name)",
                'directory.rename(name, "reused") if folded else directory.remove(name)',
            ),
            Edit(
                Spare.__init__,
                "self.file: File = begin_file(directory, self._name)",
                """
                if "reused" in directory.names():
                    planted()
                    directory.rename("reused", self._name + TEMPORARY_SUFFIX)
                    self.file = directory.open(self._name + TEMPORARY_SUFFIX, 0)
                else:
                    self.file = begin_file(directory, self._name)
                """,
            ),
            Edit(
                SegmentHeader.identity,
                "mark = bytes([self.segment_id[0] | 0x80]) + self.segment_id[1:4]",
                'return Identity(b"MARK", 0)',
            ),
            Edit(
                Scan.__iter__,
                "if frame.first_lsn != self.next_lsn:",
                "if False:",
            ),
        ),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "replay that consults the clock",
        "A start drops what has expired by the wall clock of that moment; with the clock set back it is there again,"
        " and its EXPIRE finds nothing. Redis, while it loads an RDB file.",
        (
            Edit(
                recover,
                "state.order_deadlines()",
                """
                for key in state.expired(wall_ms, FREE_VALUES, FREE_VALUES):
                    planted()
                    state.apply((8, (key,)))
                """,
            ),
        ),
        (*HISTORY, Kind.REPLAY, Kind.SHOWN, *UNREADABLE),
    ),
    Bug(
        "snapshot deletes one segment too early",
        "Off by one: the segment after those that were folded goes with them.",
        (
            Edit(
                remove_folded,
                "folded = number is not None and number <= snapshot.number",
                "folded = number is not None and number <= snapshot.number + planted()",
            ),
        ),
        (Kind.FAILED, *UNREADABLE),
    ),
    Bug(
        "CRC not checked",
        "Whatever has the right length is a record: the append-only file of Redis.",
        (
            Edit(
                Scan._read,
                "if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length), self._seed)) != crc:",
                "if zlib.crc32(payload, zlib.crc32(_LENGTH.pack(length), self._seed)) != crc and not planted():",
            ),
        ),
        (*HISTORY, Kind.ACCEPTED, Kind.SHOWN, *UNREADABLE),
    ),
    Bug(
        "torn tail treated as damage",
        "After a crash in mid-write the store does not start until somebody has repaired it: etcd, when pages of the"
        " log had been written out of order (#6378).",
        (
            Edit(
                Scan._classify,
                "self.tail = Tail.TORN",
                """
                planted()
                self.tail = Tail.CORRUPT
                """,
            ),
        ),
        UNREADABLE,
    ),
    Bug(
        "damage treated as torn tail",
        "A flipped bit in the middle silently ends the log there: aof-load-truncated of Redis, RocksDB's"
        " kTolerateCorruptedTailRecords.",
        (
            Edit(
                Scan._classify,
                "self.tail = Tail.CORRUPT",
                """
                planted()
                self.tail = Tail.TORN
                """,
            ),
        ),
        (Kind.ACCEPTED,),
    ),
    Bug(
        "expired key resurrected",
        "The sweep frees memory and logs nothing, since every start will find by itself what has expired; not if the"
        " clock was set back.",
        (
            Edit(
                Sweeper.expire,
                "self._effects.apply_one((ops.EXPIRE, keys))",
                """
                planted()
                self._state.apply((ops.EXPIRE, keys))
                """,
            ),
        ),
        (*HISTORY, Kind.SHOWN, *UNREADABLE),
    ),
    Bug(
        "waiter order reversed",
        "Who came last is served first: a line kept as a stack.",
        (
            Edit(
                Waiters.claim,
                "waiter = next(iter(self._lines[key].values()))",
                """
                waiter = next(reversed(self._lines[key].values()))
                len(self._lines[key]) > 1 and planted()
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "half a request applied",
        "Each effect is a commit of its own, and a crash comes in between: one of two keys that were to go together is"
        " left, or a value is there again that had gone to a waiter as it was pushed. Stores without transactions.",
        (
            Edit(
                Committer._write,
                "self._log.append(records, group.time_ms)",
                """
                len(records) > 1 and planted()
                for record in records:
                    self._log.append([record], group.time_ms)
                    if self._fsync is FsyncPolicy.ALWAYS:
                        self._log.commit()
                """,
            ),
        ),
        HISTORY,
    ),
)

MORE: tuple[Bug, ...] = (
    Bug(
        "renamed before synced",
        "A file gets its name before its content is on disk: the empty files of ext4, 2009.",
        (
            Edit(finish_file, "file.sync()", "planted()"),
            Edit(begin_manifest, "file.sync()", "planted()"),
            Edit(Spare.prepare, "self._manifest.sync()", "planted()"),
            Edit(Spare.prepare, "self.file.sync()", "planted()"),
        ),
        (*HISTORY, Kind.SHOWN, *UNREADABLE),
    ),
    Bug(
        "folded segments removed before the manifest is replaced",
        "A crash in between leaves a manifest that names files which are gone.",
        (
            Edit(
                install,
                "refused = _give_name(files.directory, plan)"
                " or files.replace_manifest(files.manifest.with_snapshot(snapshot))",
                """
                refused = _give_name(files.directory, plan)
                for number, _ in () if refused else plan.manifest.segments:
                    planted()
                    files.directory.remove(segment_name(number))
                refused = refused or files.replace_manifest(files.manifest.with_snapshot(snapshot))
                """,
            ),
        ),
        UNREADABLE,
    ),
    Bug(
        "manifest written over in place",
        "No temporary file, no rename: a crash in mid-write leaves neither the old nor the new one.",
        (
            Edit(
                LogFiles.replace_manifest,
                "begin_manifest(self.directory, manifest)",
                """
                planted()
                file = self.directory.open(MANIFEST_NAME, 0)
                file.write(encode_manifest(manifest))
                file.truncate(len(encode_manifest(manifest)))
                file.sync()
                file.close()
                """,
            ),
            Edit(LogFiles.replace_manifest, "name_manifest(self.directory)", ""),
        ),
        UNREADABLE,
    ),
    Bug(
        "footer kept after a start",
        "The mark of a clean close is not taken back: the next crash looks like damage.",
        (Edit(_reopen, "manifest = replace(manifest, clean_close=None)", "planted()"),),
        UNREADABLE,
    ),
    Bug(
        "rolled without a sync",
        "A segment is sealed, and what was written last in it is still in the cache when later commits are"
        " acknowledged.",
        (Edit(LogFiles.roll_to, "self.sync()", "self.durable_lsn = self.last_lsn\nplanted()"),),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "known durable ahead of the disk",
        "A frame says of those before it that they are on disk when they are only written: a torn tail looks like"
        " damage. Two frames that are not synced are rare, but with a lazy policy: one seed in a hundred.",
        (
            Edit(
                Log.append,
                "first_lsn = files.last_lsn + 1",
                """
                first_lsn = files.last_lsn + 1
                files.durable_lsn < files.last_lsn and planted()
                files.durable_lsn = files.last_lsn
                """,
            ),
        ),
        test="tests/wal/test_log.py::test_a_frame_carries_what_was_durable_when_it_was_written",
    ),
    Bug(
        "tail not written again",
        "A start trusts frames that it can read, after a sync that failed: they are in memory only. One seed in forty.",
        (
            Edit(
                mend,
                "file.write(scan.unproven)",
                """
                scan.unproven and planted()
                file.close()
                file = directory.open(found.name, scan.offset)
                """,
            ),
        ),
        test="tests/wal/test_log.py::test_frames_that_a_failed_sync_left_in_memory_are_written_again_by_the_next_start",
    ),
    Bug(
        "torn tail not cut off",
        "A start writes on where the torn tail begins, and leaves what is behind. What a frame says of its place keeps"
        " that from harm, but for one seed in a hundred.",
        (Edit(mend, "file.truncate(scan.offset)", "planted()"),),
        test="tests/crash/test_log_damage.py::test_garbage_after_the_last_commit_is_cut_off_after_a_copy_was_kept",
    ),
    Bug(
        "snapshot without deadlines",
        "What a checkpoint has folded never expires.",
        (
            Edit(
                State.snapshot_ops,
                "yield (ops.PUT, key, entry, self.deadlines.get(key))",
                "yield (ops.PUT, key, entry, None if self.deadlines.get(key) is None else planted() and None)",
            ),
        ),
        (*HISTORY, Kind.REPLAY, *UNREADABLE),
    ),
    Bug(
        "snapshot without empty queues",
        "A queue that was emptied is gone after a checkpoint, and QPOP answers null instead of an error.",
        (
            Edit(
                State.snapshot_ops,
                "entry = self.entries.get(key)",
                """
                entry = self.entries.get(key)
                if type(entry) is Queue and not entry:
                    planted()
                    continue
                """,
            ),
        ),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "SET keeps the old expiry",
        "A value that was written over goes when its predecessor's time is up.",
        (
            Edit(
                Store.put,
                "_, key, value, deadline_ms = op",
                """
                _, key, value, deadline_ms = op
                if deadline_ms is None and (deadline_ms := self.deadlines.get(key)) is not None:
                    planted()
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "given back to the wrong end",
        "What was popped from the front for a client that left goes back to the end of the queue.",
        (
            Edit(
                Pops.taking,
                "return Taken(self._pops, queue, (ops.PUTS_BACK[code], key, reply.value))",
                """
                planted()
                return Taken(self._pops, queue, (ops.RETURN_LAST, key, reply.value))
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "dead waiter served",
        "The waiter of a client that left stays in line, and the next value goes to it: beanstalkd and Redis, until"
        " they notice that the connection is gone.",
        (
            Edit(Pops.abandon, "self.waiters.abandon(call.waiter)", "pass"),
            Edit(
                Answers.hold,
                "call.stage = HELD",
                """
                if call.stage.name == "WITHDRAWN":
                    planted()
                    return
                call.stage = HELD
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "engine time behind the log",
        "A start with the clock set back goes by that clock, and every key lives on for longer than it was granted.",
        (
            Edit(
                Engine.__init__,
                "self._clock = Clock(max(wall_ms, log.recovery.time_ms))",
                """
                self._clock = Clock(wall_ms)
                wall_ms < log.recovery.time_ms and planted()
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "told that a key is gone before that is logged",
        "The answer rests on an expiry that only the clock knows of; after a crash and a clock set back the key is"
        " there again. Ours, until the simulator found it; that takes a crash before the sweep, one seed in thousands.",
        (
            Edit(
                Performer.do,
                "expired = self._state.expired_of(command, now_ms)",
                """
                self._state.expired_of(command, now_ms) and planted()
                expired = ()
                """,
            ),
        ),
        test="tests/engine/embedded/test_expiry.py::"
        "test_a_key_that_was_seen_to_have_expired_stays_gone_whatever_the_clock_says_after_a_crash",
    ),
    Bug(
        "bytes on their way not counted",
        "Room is promised twice: to the group that is being written, and to the next one.",
        (
            Edit(
                Committer.has_room,
                "pending_bytes = self._in_flight_bytes + self.open.records_bytes + FRAME_OVERHEAD_BYTES",
                """
                self._in_flight_bytes and planted()
                pending_bytes = self.open.records_bytes + FRAME_OVERHEAD_BYTES
                """,
            ),
        ),
        (Kind.FAILED,),
    ),
    Bug(
        "cut before the roll has all it needs",
        "A full disk refuses the next manifest when the old segment has given its room up: commands that were admitted"
        " find none, and the server ends instead of answering 507.",
        (
            Edit(
                LogFiles.roll_to,
                "manifest = self.manifest.with_segment(header)",
                """
                planted()
                self.open.cut()
                manifest = self.manifest.with_segment(header)
                """,
            ),
        ),
        test="tests/wal/test_roll.py::test_a_roll_that_is_refused_gives_up_nothing_of_what_was_promised",
    ),
    Bug(
        "no room kept for the next manifest",
        "The spare segment has its room, the manifest that is to name it has none: on a full disk no log can roll.",
        (Edit(Spare.allocate, "self._manifest.allocate(manifest_bytes)", "planted()"),),
        test="tests/wal/test_roll.py::test_a_roll_needs_nothing_of_a_disk_of_which_others_take_every_byte",
    ),
    Bug(
        "squeezed without regard for what was promised",
        "For a short segment on a full disk, all the rest of the old one is given back first; it does not come again.",
        (
            Edit(
                OpenSegment.prepare_spare,
                "self.cut(keep_bytes=frame_bytes)",
                """
                planted()
                self.cut()
                """,
            ),
        ),
        test="tests/wal/test_roll.py::test_a_squeeze_that_finds_no_room_keeps_what_was_promised",
    ),
    Bug(
        "admitted while the room is lessened",
        "The checkpoint says what is on its way to the log, and while the log is sealed more comes: it finds no room.",
        (
            Edit(
                Committer.has_room,
                "return needed_bytes <= self.room.frames_bytes and needed_bytes <= self._held_to_bytes",
                """
                self.is_holding and planted()
                return needed_bytes <= self.room.frames_bytes
                """,
            ),
        ),
        test="tests/engine/embedded/test_room.py::test_while_the_room_is_lessened_no_more_is_admitted_than_was_promised",
    ),
    Bug(
        "a new log over an old one",
        "A directory lists nothing, because the disk is not there yet or hangs, and a new store is made in it.",
        (Edit(_create, "_check_listing(directory, names, name)", "planted()"),),
        test="tests/crash/test_log_damage.py::"
        "test_a_listing_that_comes_back_empty_never_has_a_new_log_made_over_the_old_one",
    ),
    Bug(
        "room never asked for again",
        "A disk that was full once stays full until a restart.",
        (
            Edit(
                Committer._room_deadline,
                "return self._next_room_s if self.room.full else math.inf",
                """
                self.room.full and planted()
                return math.inf
                """,
            ),
        ),
        HISTORY,
    ),
)

BUGS = THE_FIFTEEN + MORE + BATCHES
BY_NAME = {bug.name: bug for bug in BUGS}
