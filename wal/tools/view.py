"""A log as it is at one moment, to be read beside a server that goes on writing it.

A server rolls, and folds segments into snapshots and removes them, at any time. So whoever reads beside it first takes
hold of every file that the manifest names, and begins anew when one is gone and the manifest another by then. After
that nothing moves any more: sealed segments and snapshots are never written to, and the last segment only grows.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from wal.files import Directory, HeldFile
from wal.manifest import MANIFEST_NAME, Manifest, decode_manifest, encode_manifest
from wal.segment import segment_name, snapshot_name

LOOKS_MAX = 100
"""A server replaces its manifest a few times a second at most, and a look takes less than a millisecond."""


class NoLog(Exception):
    """There is no log in the directory, damaged or not."""

    def __init__(self, directory: str) -> None:
        super().__init__(f"there is no log in {directory}")


class Restless(Exception):
    """The log changes faster than it can be read."""

    def __init__(self, directory: str) -> None:
        super().__init__(
            f"the log in {directory} changes faster than it can be read; try again when there is less load"
        )


class View:
    """The files that make up a log, held open; a `Readable`. Leave the `with` block to give them back.

    Args:
        directory: with or without its lock.
        names: of the files in it that are to be looked at.
        manifest: what makes up the log; None for a directory without a manifest.
        data: the manifest's bytes.
    """

    def __init__(self, directory: Directory, names: list[str], manifest: Manifest | None, data: bytes | None) -> None:
        self.manifest = manifest
        self._directory = directory
        self._data = data
        self._held: dict[str, HeldFile] = {}
        expected = [] if manifest is None else listed(manifest)
        try:
            for name in expected:
                self._try_to_hold(name)
        except BaseException:
            self.close()
            raise
        self.is_whole = len(self._held) == len(expected)
        self._names = sorted({*names, *self._held})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> str:
        """How messages name the directory."""
        return self._directory.path

    def names(self) -> list[str]:
        """Names of the plain files as they were, sorted."""
        return self._names

    def size(self, name: str) -> int:
        """Length of a file, in bytes."""
        held = self._held.get(name)
        return self._directory.size(name) if held is None else held.size()

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        """The content of a file from `offset` on, `count` bytes at most; None is all of it."""
        if name == MANIFEST_NAME and self._data is not None:
            return self._data[offset:] if count is None else self._data[offset : offset + count]
        held = self._held.get(name)
        return self._directory.read(name, offset, count) if held is None else held.read(offset, count)

    def is_current(self) -> bool:
        """Whether the directory still has the same manifest."""
        return _manifest_bytes(self._directory) == self._data

    def close(self) -> None:
        """Gives the files back."""
        while self._held:
            self._held.popitem()[1].close()

    def _try_to_hold(self, name: str) -> None:
        try:
            self._held[name] = self._directory.hold(name)
        except FileNotFoundError:
            return  # damage, or folded and removed: the manifest will tell


def listed(manifest: Manifest) -> list[str]:
    """Names of the files that make up a log, in the order in which they are replayed."""
    snapshot = [] if manifest.snapshot is None else [snapshot_name(manifest.snapshot.number)]
    return snapshot + [segment_name(number) for number in manifest.numbers]


def look(directory: Directory) -> View:
    """Looks at the log in a directory.

    Args:
        directory: with or without its lock.

    Returns:
        The log under its present manifest; what is missing from it then is really missing.

    Raises:
        Damage, NewerFormat: the manifest cannot be read.
        Restless: a server changes the log all the time.
        OSError: reading failed.
    """
    for _ in range(LOOKS_MAX):
        names, data = directory.names(), _manifest_bytes(directory)
        view = View(directory, names, None if data is None else decode_manifest(data, directory.path), data)
        if view.is_whole or view.is_current():
            return view
        view.close()
    raise Restless(directory.path)


def view_as(directory: Directory, manifest: Manifest) -> View:
    """Looks at a directory as if this were its manifest, and at nothing that it does not name."""
    return View(directory, [], manifest, encode_manifest(manifest))


def _manifest_bytes(directory: Directory) -> bytes | None:
    try:
        return directory.read(MANIFEST_NAME)
    except FileNotFoundError:
        return None
