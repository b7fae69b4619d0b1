"""A directory as it would be with some files changed: a repair looks at that before it touches the disk."""

from __future__ import annotations

from wal.files import Readable


class Overlay:
    """A `Readable` over another, with changes in memory."""

    def __init__(self, source: Readable) -> None:
        self.changed: dict[str, bytes] = {}
        self.removed: set[str] = set()
        self._source = source

    @property
    def path(self) -> str:
        """How messages name the directory."""
        return self._source.path

    def names(self) -> list[str]:
        """Names of the files as they are to be, sorted."""
        return sorted({*self._source.names(), *self.changed} - self.removed)

    def size(self, name: str) -> int:
        """Length of a file, in bytes."""
        return len(self.changed[name]) if name in self.changed else self._source.size(name)

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        """The content of a file from `offset` on, `count` bytes at most; None is all of it."""
        if name not in self.changed:
            return self._source.read(name, offset, count)
        return self.changed[name][offset : None if count is None else offset + count]

    def put(self, name: str, data: bytes) -> None:
        """Makes or replaces a file."""
        self.changed[name] = data
        self.removed.discard(name)

    def remove(self, name: str) -> None:
        """Takes a file away."""
        self.changed.pop(name, None)
        self.removed.add(name)
