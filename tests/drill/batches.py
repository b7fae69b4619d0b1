"""Bugs of batches; see bugs.py."""

from __future__ import annotations

from engine.embedded.actor import Actor
from engine.embedded.performer import Performer
from engine.embedded.pops import Pops
from tests.drill.plant import HISTORY, UNREADABLE, Bug, Edit, Kind

BATCHES: tuple[Bug, ...] = (
    Bug(
        "a unit in two frames",
        "The records of a unit are written one after the other like those of single commands, and a crash comes in"
        " between: MULTI of Redis, if its append-only file is cut off there and loaded without a look at the EXEC.",
        (
            Edit(
                Performer.do_unit,
                "self._committer.open.add(journal.records, journal.records_bytes)",
                """
                for record in journal.records:
                    len(journal.records) > 1 and planted()
                    self._committer.open.add([record], len(record))
                    self._committer.open.frame_bytes = 1 << 40
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "a refused unit not rolled back",
        "What was done before the command that is refused stays, for nothing is ever taken back: EXEC of Redis by"
        " design.",
        (Edit(Performer.do_unit, "yield from journal.roll_back()", "journal.effects and planted()"),),
        (*HISTORY, *UNREADABLE, Kind.LOST, Kind.TWICE),
    ),
    Bug(
        "a refused unit rolled back but for its first op",
        "Off by one in the journal.",
        (
            Edit(
                Performer.do_unit,
                "yield from journal.roll_back()",
                """
                del journal._undos[: journal._undos and planted()]
                yield from journal.roll_back()
                """,
            ),
        ),
        (*HISTORY, *UNREADABLE, Kind.LOST, Kind.TWICE),
    ),
    Bug(
        "a unit that does not see itself",
        "All commands of a unit are decided before any of them is applied, by the state before it.",
        (
            Edit(Performer._decide_one, "journal.apply(op)", "journal.effects.append(op)"),
            Edit(
                Performer._decide_all,
                "refusal = self._refusal(journal.effects, journal.records_bytes) if journal.effects else None",
                """
                decided, journal.effects = journal.effects, []
                for op in decided:
                    len(decided) > 1 and planted()
                    journal.apply(op)
                refusal = self._refusal(journal.effects, journal.records_bytes) if journal.effects else None
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "waiters served in the middle of a unit",
        "A push hands its value to who waits for it, although the unit it is in pops that value next.",
        (
            Edit(
                Performer._decide_one,
                "journal.apply(op)",
                """
                journal.apply(op)
                if op[0] in ops.GROWING and op[1] in self._pops.waiters:
                    planted()
                    self._committer.open.add(journal.records, journal.records_bytes)
                    journal.records, journal.records_bytes = [], 0
                    self._pops.serve((op[1],))
                """,
            ),
        ),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "others served while a unit pauses",
        "Half way through a long unit other tasks have their turn, and so has a command of somebody else.",
        (
            Edit(
                Actor._pausing,
                "await trio.lowlevel.checkpoint()",
                """
                await trio.lowlevel.checkpoint()
                while self.mailbox.backlog and isinstance(self.mailbox.backlog[0], Call):
                    planted()
                    call = self.mailbox.backlog.popleft()
                    self._answer(call, self._performer.do(call.command, now_ms, call.taken), now_ms)
                """,
            ),
        ),
        (*HISTORY, *UNREADABLE),
    ),
    Bug(
        "values of a refused unit given back",
        "What a unit has popped goes back when it is refused, and once more when its client leaves.",
        (
            Edit(
                Performer.do_unit,
                "yield from journal.roll_back()",
                """
                yield from journal.roll_back()
                taken += unit_taken
                unit_taken and planted()
                """,
            ),
        ),
        (*HISTORY, Kind.TWICE),
    ),
    Bug(
        "a batch answered before its last slice is on disk",
        "A long batch counts as written as soon as the group is that it began in.",
        (
            Edit(
                Actor._go_on_with,
                "outcome: list[Reply] | Refused | Delay | None = None",
                "outcome, is_begun = None, bool(batch.replies)",
            ),
            Edit(
                Actor._go_on_with,
                "self._answer_batch(batch, outcome)",
                """
                if is_begun and batch.stage is QUEUED:
                    planted()
                    self.answers.give(batch, outcome)
                else:
                    self._answer_batch(batch, outcome)
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "a batch that goes on at its end",
        "What is left of a long batch after its first slice is done from behind.",
        (
            Edit(
                Actor._go_on_with,
                "self.mailbox.backlog.append(batch)",
                """
                done = len(batch.replies)
                len(batch.commands) > done + 1 and planted()
                batch.commands = [*batch.commands[:done], *reversed(batch.commands[done:])]
                self.mailbox.backlog.append(batch)
                """,
            ),
        ),
        HISTORY,
    ),
    Bug(
        "values popped by a batch not given back",
        "Only the first value goes back when the client of a batch leaves: one place for it, as for a single pop.",
        (
            Edit(
                Pops.abandon,
                "self._abandoned += call.taken",
                """
                len(call.taken) > 1 and planted()
                self._abandoned += call.taken[:1]
                """,
            ),
        ),
        (*HISTORY, Kind.LOST),
    ),
    Bug(
        "values given back in the wrong order",
        "The first pop is undone first, so what a batch popped is back in its reverse order.",
        (
            Edit(
                Pops.give_back,
                "self._owed.sort(key=lambda taken: taken.serial)",
                """
                len(self._owed) > 1 and planted()
                self._owed.sort(key=lambda taken: -taken.serial)
                """,
            ),
        ),
        HISTORY,
    ),
)
