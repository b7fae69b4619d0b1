"""The seam between the log and the file system, at which every test injects faults.

`Directory` and `File` are the whole vocabulary the log needs. `wal/files.py` has the real thing; the tests' fake keeps
what was written apart from what was synced, and can cut the power.
"""

from __future__ import annotations

from typing import Protocol


class File(Protocol):
    """A file open for writing, from some offset on to its end and beyond."""

    def write(self, data: bytes) -> None:
        """Writes all of `data`, or raises OSError after an unknown part of it."""

    def sync(self) -> None:
        """Returns when everything written is on disk; raises OSError when that cannot be said."""

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file to `size_bytes`; writing goes on where it was, or at the new end if that comes before."""

    def rewind(self) -> None:
        """Goes back to the beginning: what is written next is written over what stands there."""

    def allocate(self, size_bytes: int) -> None:
        """Takes the disk's room for a length of `size_bytes`, and makes the file that long; what is new reads as zeros.

        Raises:
            OSError: ENOSPC, EDQUOT, or the file system cannot; the length may have grown all the same.
        """

    def close(self) -> None:
        """Closes the file without a sync."""


class HeldFile(Protocol):
    """A file open for reading, which can be read also when its name is gone."""

    def size(self) -> int:
        """Its length now, in bytes."""

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        """Its content from `offset` on, `count` bytes at most; None is all of it."""

    def close(self) -> None:
        """Gives it back."""


class Readable(Protocol):
    """What a log can be read from."""

    @property
    def path(self) -> str:
        """How messages name the directory."""

    def names(self) -> list[str]:
        """Names of the plain files in it, sorted."""

    def size(self, name: str) -> int:
        """Length of a file, in bytes."""

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        """The content of a file from `offset` on, `count` bytes at most; None is all of it."""


class Directory(Readable, Protocol):
    """A data directory, locked by whoever holds this object."""

    def length_of(self, name: str, file: File) -> int | None:
        """Length of a file opened here, in bytes; None when it does not stand under this name any more."""

    def hold(self, name: str) -> HeldFile:
        """Opens a file for reading, so that it stays when somebody removes it."""

    def link(self, name: str, other: Directory, new: str) -> None:
        """Gives a file a second name, here or in another directory.

        Raises:
            OSError: among others EXDEV, on another file system, and EPERM, on one that knows no second names.
        """

    def create(self, name: str) -> File:
        """Makes a new, empty file; raises FileExistsError when there is one."""

    def open(self, name: str, offset: int) -> File:
        """Opens an existing file for writing from `offset` on, in bytes; what stands there is written over."""

    def rename(self, old: str, new: str) -> None:
        """Renames a file, replacing what stood under the new name."""

    def remove(self, name: str) -> None:
        """Removes a file."""

    def sync(self) -> None:
        """Returns when creations, renames and removals are on disk."""

    def random_bytes(self, count: int) -> bytes:
        """Unpredictable bytes for identities."""

    def free_bytes(self) -> int:
        """Room left on the disk for us."""

    def capacity_bytes(self) -> int:
        """Size of the whole disk."""

    def is_in_place(self) -> bool:
        """Whether the directory's path still leads to it."""

    def close(self) -> None:
        """Gives up the lock."""
