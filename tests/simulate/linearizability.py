"""Whether a history can be explained: each command done at one instant between its sending and its end, in one order.

The search is that of Wing and Gong, made quick as Lowe does ("Testing for linearizability", 2017): the events are gone
through once, with the set of all shelves the store may be at; an operation need only be done by the time its answer
arrives, so the search branches over those in flight and nothing else. Keys are judged one by one, as linearizability
allows (Herlihy and Wing), but for those that are named in one command, which share a shelf.

Beyond plain linearizability:
- First come, first served: a blocking pop has reached the store when the instant in which it was sent is over. (In a
  simulation time passes only when nothing else can happen.) So has everything else, if the mailbox was empty by then:
  nothing that clients see says so, but without it the orders are too many when a dozen commands are in flight.
- A client that left: when the instant is over, its command has happened or never will; what it popped is back.
- A crash is a bar: what was in flight has happened by then, or never will. What the next start finds is what the store
  was at after some event, the same one for every key: one after which nothing was sent that somebody has the answer
  of. With a lazy fsync policy a power cut may take back more: then it is any event not before `Life.safe_ms`.
- A batch: its commands are done in their order, those of a unit in one step, with nothing in between.

A batch over keys that are judged apart has a share in each of those searches. They are held together where they meet:
- What has surely been done of it by some event, as one search knows, the others must have been able to do by then. So
  nobody sees one part of a unit, and later that another has not happened.
- When its client has left, there must be a number of its first commands, of a unit none or all, that suits every
  search, and that goes on to suit them by what is seen later (of a life's last `DOUBTED_MAX` such batches).
- So there must in a crash, at the one event after which the store is found again.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.simulate.history import Dump, End, Kind, Life, Operation, Outcome, Request, Violation
from tests.simulate.search import SHOWN_OPERATIONS, Claim, Search
from tests.simulate.shelf import Rules

DOUBTED_MAX = 3
"""Each batch whose client left, and of which nobody knows how much was done, may double what the store may be at."""


class Judge:
    """Judges one history, life by life.

    Args:
        groups: the keys of the history; those of one group are judged together.
    """

    def __init__(self, groups: Sequence[tuple[bytes, ...]]) -> None:
        self._lives: list[Life] = []
        self._operations: dict[int, Operation] = {}
        rules = Rules(self._operations, self._lives)
        self._searches = [Search(keys, rules, self._operations) for keys in groups]
        self._now_ms = 0
        self._leaving: list[Request] = []
        self._doubted: list[Request] = []

    def begin(self, life: Life) -> None:
        """A life has started."""
        self._lives.append(life)

    def finish(self, found: Dump) -> None:
        """The life is over, and this is what the next start has found.

        Raises:
            Violation: there is no order that explains it.
        """
        life = self._lives[-1]
        self._operations.clear()
        self._operations.update({operation.number: operation for operation in life.operations})
        self._live(life)
        content = {entry[1]: entry for entry in found}
        first = _first_cut(life)
        cuts = set(range(first, len(life.events) + 1))
        for search in self._searches:
            cuts &= search.matching_cuts(life, content, first)
        cuts = {cut for cut in cuts if _agree([search.claims(cut) for search in self._searches], {})}
        if not cuts:
            lines = [str(operation) for operation in life.operations[-SHOWN_OPERATIONS:]]
            raise Violation("\n".join([f"no moment explains all of what was found: {list(found)}", *lines]))
        for search in self._searches:
            search.reopen(cuts)

    def _live(self, life: Life) -> None:
        """Goes through the events of a life."""
        self._now_ms, self._leaving, self._doubted = life.started_ms, [], []
        for search in self._searches:
            search.begin(life.started_ms)
        for index, (now_ms, kind, request) in enumerate(life.events):
            self._pass_time(now_ms)
            self._take(kind, request)
            for search in self._searches:
                search.note(index)
        if life.ended_ms > self._now_ms or life.end is End.STOP:
            self._end_instant()
        for search in self._searches:
            search.note(len(life.events))

    def _take(self, kind: Kind, request: Request) -> None:
        concerned = self._concerned(request)
        if kind is Kind.SENT:
            for search in concerned:
                search.send(request, is_shared=len(concerned) > 1)
        elif request.outcome is Outcome.ANSWERED:
            for search in concerned:
                search.answer(request)
            self._spread(concerned)
        elif concerned:
            self._leaving.append(request)
            for search in concerned:
                search.leave()

    def _concerned(self, request: Request) -> list[Search]:
        return [search for search in self._searches if search.concerns(request)]

    def _pass_time(self, now_ms: int) -> None:
        if now_ms > self._now_ms:
            self._end_instant()
            self._now_ms = now_ms
            for search in self._searches:
                search.now_ms = now_ms

    def _end_instant(self) -> None:
        """Time is about to pass, so everything that could happen has happened."""
        for search in self._searches:
            search.arrive(self._leaving, may_refuse=self._lives[-1].full_until_ms > 0)
        leaving, self._leaving = self._leaving, []
        for request in leaving:
            concerned = self._concerned(request)
            for search in concerned:
                search.see_off(request)
            if len(concerned) > 1:
                self._doubted.append(request)
                self._compare(request)
        while len(self._doubted) > DOUBTED_MAX:
            self._trust(self._doubted[0])

    def _spread(self, changed: list[Search]) -> None:
        """What one search knows to have been done of a batch by now, has been done for the others as well."""
        todo = list(changed)
        while todo:
            search = todo.pop()
            for request, length in search.known():
                todo += [other for other in self._searches if other is not search and other.require(request, length)]
            for request in list(self._doubted):
                todo += self._compare(request)

    def _compare(self, request: Request) -> list[Search]:
        """Finds out how much of a batch was done before its client left, as far as all know; those for whom it is news.

        Raises:
            Violation: there is no number of its first commands that suits every search.
        """
        concerned = self._concerned(request)
        lengths = set.intersection(*(search.lengths(request) for search in concerned))
        if not lengths:
            lines = "\n".join(map(str, request.operations))
            raise Violation(f"no order of the commands explains what was done before the client left:\n{lines}")
        changed = [search for search in concerned if search.narrow(request, lengths)]
        if len(lengths) == 1:
            self._trust(request)
        return changed

    def _trust(self, request: Request) -> None:
        self._doubted.remove(request)
        for search in self._concerned(request):
            search.trust(request)


def _agree(claims: Sequence[set[Claim]], lengths: dict[int, range]) -> bool:
    """Whether each search can make a claim on how much of each batch was done, so that none is against another."""
    if not claims:
        return True
    for claim in claims[0]:
        narrowed = dict(lengths)
        for number, claimed in claim:
            known = narrowed.get(number, claimed)
            narrowed[number] = range(max(known.start, claimed.start), min(known.stop, claimed.stop))
        if all(narrowed.values()) and _agree(claims[1:], narrowed):
            return True
    return False


def _first_cut(life: Life) -> int:
    """The first event after which the store may have been as it was found: what was acknowledged was sent by then.

    The end of the life counts as one more event.
    """
    if life.end is End.STOP:
        return len(life.events)
    if life.safe_ms is not None:
        return max((index for index, event in enumerate(life.events) if event[0] < life.safe_ms), default=-1)
    sent = (index for index, (_, kind, one) in enumerate(life.events) if kind is Kind.SENT and one.is_acknowledged)
    return max(sent, default=-1)
