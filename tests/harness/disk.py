"""A disk in memory that keeps what was written apart from what was synced, and whose power can be cut.

`FakeDisk` is the platter: it outlives engines. `FakeDisk.directory()` is what a server opens; it follows the
`Directory` protocol of `wal/files.py`, so the log above it is the real one.

    disk.kill()       the process is gone, the system is not: everything written is still there, the lock is free
    disk.cut_power()  what was not synced is gone: file contents by `File.sync`, names by `Directory.sync`
    disk.fault = f    f(operation, name) is called before every operation and may raise OSError, or cut the power

A sync that fails takes what was to be synced for clean, as Linux does: it can still be read, a later sync that
succeeds says nothing about it, and only writing it again will bring it to the disk.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from wal.files import LockedError

OPERATIONS = (
    "names",
    "size",
    "read",
    "create",
    "open",
    "rename",
    "remove",
    "sync_directory",
    "write",
    "sync",
    "truncate",
)
CHANGING = ("create", "rename", "remove", "sync_directory", "write", "sync", "truncate")

Fault = Callable[[str, str], None]


def failing(*operations: str) -> Fault:
    """A fault: these operations raise EIO, every time."""

    def fault(operation: str, _name: str) -> None:
        if operation in operations:
            raise OSError(errno.EIO, "injected")

    return fault


SECTOR_BYTES = 512


class Content:
    """The bytes of a file: as written, as they would survive a power cut, and from where on a sync has work to do."""

    def __init__(self, data: bytes = b"") -> None:
        self.written = bytearray(data)
        self.synced = data
        self.dirty_from: int | None = None

    def write(self, offset: int, data: bytes) -> None:
        """Writes over what stands at `offset`, and beyond the end."""
        self.written[offset : offset + len(data)] = data
        self._touch(offset)

    def truncate(self, size_bytes: int) -> None:
        """Cuts the file."""
        del self.written[size_bytes:]
        self._touch(size_bytes)

    def sync(self) -> None:
        """Brings what is dirty to the disk; what an earlier failed sync dropped is a hole of zeros."""
        if self.dirty_from is not None:
            self.synced = self.synced[: self.dirty_from].ljust(self.dirty_from, b"\0") + self.written[self.dirty_from :]
            self.dirty_from = None

    def fail_to_sync(self) -> None:
        """Takes everything for clean, and nothing is on disk."""
        self.dirty_from = None

    def lose(self, torn: random.Random | None) -> None:
        """Drops what was not synced, or with `torn` a random part of what was appended, sector by sector."""
        kept = bytearray(self.written[len(self.synced) :])
        del kept[torn.randint(0, len(kept)) if torn else 0 :]
        for at in range(-(len(self.synced) % SECTOR_BYTES), len(kept), SECTOR_BYTES):
            if torn and torn.random() < 0.25:
                sector = slice(max(0, at), at + SECTOR_BYTES)
                kept[sector] = bytes(len(kept[sector]))
        self.written = bytearray(self.synced + kept)
        self.synced = bytes(self.written)
        self.dirty_from = None

    def _touch(self, offset: int) -> None:
        self.dirty_from = offset if self.dirty_from is None else min(offset, self.dirty_from)


class FakeDisk:
    """One data directory's worth of disk.

    Args:
        seed: of the identities the log asks for, so that a run can be repeated byte for byte.
    """

    def __init__(self, seed: int = 0) -> None:
        self.names: dict[str, Content] = {}
        self.durable_names: dict[str, Content] = {}
        self.fault: Fault | None = None
        self.log: list[tuple[str, str]] = []
        self.holder: FakeDirectory | None = None
        self._random = random.Random(seed)

    def directory(self) -> FakeDirectory:
        """Opens the directory and takes its lock.

        Raises:
            LockedError: somebody else has it open.
        """
        if self.holder is not None:
            raise LockedError("fake", "another engine")
        self.holder = FakeDirectory(self)
        return self.holder

    def kill(self) -> None:
        """Ends whoever holds the directory; the system keeps what was written."""
        self._revoke()

    def cut_power(self, torn: random.Random | None = None, *, keep_names: bool = False) -> None:
        """Drops what was not synced.

        Args:
            torn: when given, each file keeps a random part of its unsynced end, as a disk may.
            keep_names: creations, renames and removals have reached the disk before the contents did.
        """
        self._revoke()
        if keep_names:
            self.durable_names = dict(self.names)
        self.names = dict(self.durable_names)
        for content in self.names.values():
            content.lose(torn)

    def copy(self) -> FakeDisk:
        """A disk with the same visible content, all of it durable; nobody holds it."""
        other = FakeDisk()
        for name, content in self.names.items():
            other.put(name, bytes(content.written))
        return other

    def put(self, name: str, data: bytes) -> None:
        """Places a file, durably, behind the back of whoever runs."""
        self.names[name] = self.durable_names[name] = Content(data)

    def get(self, name: str) -> bytes:
        """What a reader of the file would see."""
        return bytes(self.names[name].written)

    def content(self) -> dict[str, bytes]:
        """All files with their visible content."""
        return {name: bytes(content.written) for name, content in sorted(self.names.items())}

    def segments(self) -> list[str]:
        """Names of the log's segments, oldest first."""
        return sorted(name for name in self.names if name.endswith(".log"))

    def operate(self, holder: FakeDirectory, operation: str, name: str) -> None:
        """Notes an operation and lets the fault have its way; a holder that was killed cannot do anything."""
        if self.holder is not holder:
            raise OSError("this holder of the disk was killed")
        self.log.append((operation, name))
        if self.fault is not None:
            self.fault(operation, name)

    def random_bytes(self, count: int) -> bytes:
        """Identities, from the seed."""
        return self._random.randbytes(count)

    def _revoke(self) -> None:
        self.holder = None
        self.fault = None


class FakeDirectory:
    """`wal.files.Directory` on a fake disk."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk

    @property
    def path(self) -> str:
        return "fake"

    def names(self) -> list[str]:
        self._disk.operate(self, "names", "")
        return sorted(self._disk.names)

    def size(self, name: str) -> int:
        self._disk.operate(self, "size", name)
        return len(self._disk.names[name].written)

    def read(self, name: str) -> bytes:
        self._disk.operate(self, "read", name)
        return bytes(self._disk.names[name].written)

    def create(self, name: str) -> FakeFile:
        self._disk.operate(self, "create", name)
        if name in self._disk.names:
            raise FileExistsError(name)
        content = self._disk.names[name] = Content()
        return FakeFile(self._disk, self, name, content, 0)

    def open(self, name: str, offset: int) -> FakeFile:
        self._disk.operate(self, "open", name)
        return FakeFile(self._disk, self, name, self._disk.names[name], offset)

    def rename(self, old: str, new: str) -> None:
        self._disk.operate(self, "rename", new)
        self._disk.names[new] = self._disk.names.pop(old)

    def remove(self, name: str) -> None:
        self._disk.operate(self, "remove", name)
        del self._disk.names[name]

    def sync(self) -> None:
        self._disk.operate(self, "sync_directory", "")
        self._disk.durable_names = dict(self._disk.names)

    def random_bytes(self, count: int) -> bytes:
        return self._disk.random_bytes(count)

    def close(self) -> None:
        if self._disk.holder is self:
            self._disk.holder = None


class FakeFile:
    """`wal.files.File` on a fake disk."""

    def __init__(self, disk: FakeDisk, directory: FakeDirectory, name: str, content: Content, offset: int) -> None:
        self._disk = disk
        self._directory = directory
        self._name = name
        self._content = content
        self._offset = offset

    def write(self, data: bytes) -> None:
        self._disk.operate(self._directory, "write", self._name)
        self._content.write(self._offset, data)
        self._offset += len(data)

    def sync(self) -> None:
        try:
            self._disk.operate(self._directory, "sync", self._name)
        except OSError:
            if self._disk.holder is self._directory:
                self._content.fail_to_sync()
            raise
        self._content.sync()

    def truncate(self, size_bytes: int) -> None:
        self._disk.operate(self._directory, "truncate", self._name)
        self._content.truncate(size_bytes)
        self._offset = size_bytes

    def close(self) -> None:
        """Nothing to give back."""
