"""The drill: bugs planted in the real code are found by the simulator, so that its silence means something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine.store.waiters import Waiters
from tests.drill.bugs import BUGS, BY_NAME, THE_FIFTEEN
from tests.drill.plant import Bug, Edit, Gone, Kind, planted
from tests.drill.search import Escaped, catch

HARMLESS = Bug("harmless", "", (Edit(Waiters.claim, "self.abandon(waiter)", "planted() and self.abandon(waiter)"),), ())


@pytest.mark.costly("seeds until one finds the bug")
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    """I1 to I7; raises when it escapes, or when the seed that found it fails without it as well."""
    assert catch(bug).by


def test_the_fifteen_that_were_asked_for_are_all_there() -> None:
    assert len(THE_FIFTEEN) == 15
    assert all(bug.kinds and not bug.test for bug in THE_FIFTEEN)  # by the simulator, all of them
    assert len({bug.name for bug in BUGS}) == len(BUGS)


def test_a_bug_that_does_no_harm_escapes() -> None:
    with pytest.raises(Escaped):
        catch(HARMLESS, range(1, 4))


def test_a_violation_of_another_kind_is_no_catch() -> None:
    """What counts is what the bug does, not that the planted lines themselves fail."""
    crash = Bug("crash", "", (Edit(Waiters.claim, "self.abandon(waiter)", "planted().nothing"),), (Kind.ORDER,))
    with pytest.raises(Escaped, match="AttributeError"):
        catch(crash, range(1, 4))


def test_a_test_that_passes_with_a_bug_planted_has_not_found_it() -> None:
    bug = BY_NAME["waiter order reversed"]
    with pytest.raises(Escaped, match="ended with 0"):
        catch(
            replace(
                bug,
                test="tests/engine/store/test_waiters.py::test_those_whose_time_is_up_come_out_at_that_very_instant",
            )
        )


def test_a_line_that_is_not_there_any_more_is_reported() -> None:
    with pytest.raises(Gone), planted(Bug("", "", (Edit(Waiters.claim, "self.abandon(nobody)", ""),), ())):
        pass


def test_a_bug_is_taken_out_again() -> None:
    before = Waiters.claim.__code__
    with planted(HARMLESS) as hits:
        assert Waiters.claim.__code__ is not before
        waiters: Waiters[str] = Waiters()
        waiters.park(b"q", None, "somebody")
        waiters.claim(b"q")
        assert hits.count == 1
        assert not waiters
    assert Waiters.claim.__code__ is before
