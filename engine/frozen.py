"""The decorator for the small classes that every request makes one of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True)
def frozen(cls: type[_Class]) -> type[_Class]:
    """Makes a dataclass that the type checker takes for a frozen one.

    At run time nothing guards its fields: a guarded one takes 0.5 microseconds to make, this one 0.15.

    Args:
        cls: the class.

    Returns:
        The dataclass, with slots, equality by type and fields, and a hash.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
