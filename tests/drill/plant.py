"""Plants a bug in the real code: lines of a function are replaced by others, for as long as a `with` block lasts.

The function's own code object is exchanged, so that whoever has imported or tabled it runs the planted lines. A line
that is to be replaced must be there, once: a refactoring that moves it makes the drill fail, it never makes it do
nothing. The new lines call `planted()` where the bug has its effect: one that was never reached was not caught either.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from types import CodeType, FunctionType
from typing import Any

HIT_NAME = "planted"
FILE_NAME = "<planted>"


class Gone(Exception):
    """The line that a bug replaces is not there any more: look again where the bug would be today."""


class Kind(Enum):
    """What the simulator says about a run; the value is how its message begins."""

    ORDER = "no order of the commands"
    MOMENT = "no moment explains"
    REFUSED = "A1: the engine refuses to start"
    DAMAGE = "damage was found where there is none"
    FAILED = "the engine failed without a reason"
    ACCEPTED = "A2, A3:"
    REPLAY = "I7:"
    SHOWN = "I5:"
    LOST = "I1, I6: lost"
    TWICE = "I6: delivered twice"
    LATE = "not answered in time"


HISTORY = (Kind.ORDER, Kind.MOMENT)
"""What the clients saw cannot be explained by what the store is."""

UNREADABLE = (Kind.REFUSED, Kind.DAMAGE)
"""A log that is sound, or should be, is refused by a start or a checkpoint."""


@dataclass(frozen=True)
class Edit:
    """One change of the code.

    Attributes:
        function: which one; also a property, a class method or a context manager.
        old: a line of it, without its indentation.
        new: the lines that take its place, indented from there.
    """

    function: Any
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """A bug to plant.

    Attributes:
        name: of a few words.
        story: what it would be in real life, and who had it.
        edits: how it would look here.
        kinds: what the simulator may say about it; anything else, a crash above all, is not a catch.
        test: the test that finds it, if the simulator does not, or too seldom.
    """

    name: str
    story: str
    edits: tuple[Edit, ...]
    kinds: tuple[Kind, ...] = ()
    test: str = ""


class Hits:
    """Counts how often planted lines had their effect; true, so that it can stand in a condition."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> bool:
        self.count += 1
        return True


@contextmanager
def planted(bug: Bug) -> Iterator[Hits]:
    """Plants a bug, and takes it out at the end.

    Raises:
        Gone: the code is no longer what the bug was made for.
    """
    hits = Hits()
    edits: dict[FunctionType, list[Edit]] = {}
    for edit in bug.edits:
        edits.setdefault(_function(edit.function), []).append(edit)
    codes = [(function, _edited(function, changes)) for function, changes in edits.items()]
    with ExitStack() as stack:
        for function, code in codes:
            stack.enter_context(_exchanged(function, code, hits))
        yield hits


def failed_itself(error: BaseException) -> bool:
    """Whether an error comes from planted lines themselves, such as one that names what is not there any more."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == FILE_NAME


@contextmanager
def _exchanged(function: FunctionType, code: CodeType, hits: Hits) -> Iterator[None]:
    old, scope = function.__code__, function.__globals__
    assert scope.get(HIT_NAME, hits) is hits, "the name is taken there, or another bug is planted"
    function.__code__, scope[HIT_NAME] = code, hits
    try:
        yield
    finally:
        function.__code__ = old
        scope.pop(HIT_NAME, None)


def _function(found: Any) -> FunctionType:
    """The plain function below whatever it is wrapped in."""
    if isinstance(found, property):
        found = found.fget
    found = inspect.unwrap(getattr(found, "__func__", found))
    assert isinstance(found, FunctionType), found
    return found


def _edited(function: FunctionType, edits: Sequence[Edit]) -> CodeType:
    """The function with lines replaced, compiled."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    found = []
    for edit in edits:
        at = [number for number, line in enumerate(lines) if line.strip() == edit.old]
        if len(at) != 1:
            raise Gone(f"{function.__module__}.{function.__qualname__} has {len(at)} lines {edit.old!r}, not one")
        found.append((at[0], edit))
    for place, edit in found:
        indentation = lines[place].removesuffix(edit.old)
        lines[place] = textwrap.indent(textwrap.dedent(edit.new).strip("\n"), indentation)
    source = "\n".join(["from __future__ import annotations", *lines])
    code = compile(source, FILE_NAME, "exec", dont_inherit=True)
    scope: dict[str, Any] = dict(function.__globals__)
    exec(code, scope)
    edited = _function(scope[function.__name__])
    assert edited.__code__.co_freevars == function.__code__.co_freevars, "a function with a closure cannot be edited"
    return edited.__code__
