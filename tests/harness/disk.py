"""A disk in memory that keeps what was written apart from what was synced, and whose power can be cut.

`FakeDisk` is the platter: it outlives engines. `FakeDisk.directory()` is what a server opens; it follows the
`Directory` protocol of `wal/files.py`, so the log above it is the real one.

    disk.kill()       the process is gone, the system is not: everything written is still there, the lock is free
    disk.cut_power()  what was not synced is gone: file contents by `File.sync`, names by `Directory.sync`
    disk.fault = f    f(operation, name) is called before every operation and may raise OSError, or cut the power
    disk.capacity_bytes = n   there is room for so much, and not a byte more (ENOSPC)
    disk.is_contested = True  others write as well, and take every byte there is as soon as it is free

What was not synced need not be gone altogether. With a `random.Random` as `torn`, the system had begun to bring it to
the disk when the power went: of every file any of the 512-byte sectors written since its last sync, in any order, each
as one of the writes left it, and its old length or a newer one; of the directory any of the entries made, renamed or
removed since the last sync of the directory. Bytes on their way to where only zeros stood may arrive wrong; a sector
that held something is written whole or not at all. What was synced, and not written since, is never touched.

A sync that fails takes what was to be synced for clean, as Linux does: it can still be read, a later sync that
succeeds says nothing about it, and only writing it again will bring it to the disk.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

from tests.harness.content import SECTOR_BYTES, Content, Image
from wal.files import Directory, File, LockedError

OPERATIONS = (
    "names",
    "size",
    "length_of",
    "hold",
    "read",
    "create",
    "open",
    "link",
    "rename",
    "remove",
    "sync_directory",
    "free_bytes",
    "capacity_bytes",
    "is_in_place",
    "write",
    "sync",
    "truncate",
    "allocate",
)
CHANGING = ("create", "link", "rename", "remove", "sync_directory", "write", "sync", "truncate", "allocate")

PLENTY_BYTES = 1 << 40
"""Size of a disk without a capacity."""

Fault = Callable[[str, str], None]


def failing(*operations: str) -> Fault:
    """A fault: these operations raise EIO, every time."""

    def fault(operation: str, _name: str) -> None:
        if operation in operations:
            raise OSError(errno.EIO, "injected")

    return fault


Entries = dict[str, Content]
EntryChange = tuple[str | None, str | None, Content]
"""(old name, new name, file): no old name makes a file, no new name removes it."""


class FakeDisk:
    """One data directory's worth of disk.

    Args:
        seed: of the identities the log asks for, so that a run can be repeated byte for byte.
        capacity_bytes: its size; None is plenty. May be changed at any time.
        allocates: whether room can be allocated ahead; if not, files are as long as what was written to them.
    """

    def __init__(self, seed: int = 0, capacity_bytes: int | None = None, *, allocates: bool = False) -> None:
        self.names: Entries = {}
        self.durable_names: Entries = {}
        self.capacity_bytes = capacity_bytes
        self.is_contested = False
        self.allocates = allocates
        self.fault: Fault | None = None
        self.torn: random.Random | None = None
        """When set, an operation that fails may have done a part of its work."""
        self.log: list[tuple[str, str]] = []
        self.holder: FakeDirectory | None = None
        self._beside: list[FakeDirectory] = []
        self._unsynced: list[EntryChange] = []
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

    def beside(self) -> FakeDirectory:
        """Opens the directory without its lock, as a process beside the server does; it ends with `kill` as well."""
        directory = FakeDirectory(self)
        self._beside.append(directory)
        return directory

    def kill(self) -> None:
        """Ends whoever holds the directory; the system keeps what was written."""
        self._revoke()

    def cut_power(self, torn: random.Random | None = None, *, keep_names: bool = False) -> None:
        """Drops what was not synced.

        Args:
            torn: when given, any part of it stays, contents and names, as a disk may have it.
            keep_names: all creations, renames and removals have reached the disk before the contents did.
        """
        self._revoke()
        if keep_names:
            self.durable_names = dict(self.names)
        elif torn is not None:
            self._keep_some_names(torn)
        self._unsynced.clear()
        self.names = dict(self.durable_names)
        for content in self.names.values():
            content.lose(torn)

    def copy(self) -> FakeDisk:
        """A disk with the same visible content, all of it durable; nobody holds it."""
        other = FakeDisk(allocates=self.allocates)
        for name, content in self.names.items():
            other.names[name] = other.durable_names[name] = Content(content.seen)
        return other

    def put(self, name: str, data: bytes) -> None:
        """Places a file, durably, behind the back of whoever runs."""
        self.names[name] = self.durable_names[name] = Content(Image(data))

    def get(self, name: str) -> bytes:
        """What a reader of the file would see."""
        return self.names[name].seen.read()

    def content(self) -> dict[str, bytes]:
        """All files with their visible content."""
        return {name: content.seen.read() for name, content in sorted(self.names.items())}

    def segments(self) -> list[str]:
        """Names of the log's segments, oldest first."""
        return sorted(name for name in self.names if name.endswith(".log"))

    @property
    def used_bytes(self) -> int:
        """What the files take: whole sectors, and one for the name."""
        return sum((content.seen.length + 2 * SECTOR_BYTES - 1) & -SECTOR_BYTES for content in self.names.values())

    @property
    def free_bytes(self) -> int:
        """Room left."""
        return max(0, (PLENTY_BYTES if self.capacity_bytes is None else self.capacity_bytes) - self.used_bytes)

    def operate(self, holder: FakeDirectory, operation: str, name: str) -> None:
        """Notes an operation and lets the fault have its way; a holder that was killed cannot do anything."""
        if not self.is_alive(holder):
            raise OSError("this holder of the disk was killed")
        self.log.append((operation, name))
        if self.is_contested:
            self.capacity_bytes = self.used_bytes
        if self.fault is not None:
            self.fault(operation, name)

    def is_alive(self, holder: FakeDirectory) -> bool:
        """Whether the process that holds this directory has not been killed."""
        return self.holder is holder or holder in self._beside

    def room(self, content: Content, length: int) -> int:
        """The length, up to `length`, to which the disk lets a file grow."""
        old = content.seen.length
        if self.capacity_bytes is None or length <= old:
            return length
        return min(length, (old + SECTOR_BYTES - 1) // SECTOR_BYTES * SECTOR_BYTES + self.free_bytes)

    def change_entry(self, old: str | None, new: str | None, content: Content) -> None:
        """Makes, renames or removes a file, in the sight of readers."""
        _enter(self.names, old, new, content)
        self._unsynced.append((old, new, content))

    def sync_entries(self) -> None:
        """Brings the names to the disk."""
        self.durable_names = dict(self.names)
        self._unsynced.clear()

    def release(self, holder: FakeDirectory) -> None:
        """Takes a directory back from who had it open."""
        if self.holder is holder:
            self.holder = None
        if holder in self._beside:
            self._beside.remove(holder)

    def random_bytes(self, count: int) -> bytes:
        """Identities, from the seed."""
        return self._random.randbytes(count)

    def _keep_some_names(self, chance: random.Random) -> None:
        """Each change of an entry has reached the disk or not; a rename is one change, both names or neither."""
        share = chance.choice((0.0, 0.5, 0.5, 1.0))
        for change in self._unsynced:
            if chance.random() < share:
                _enter(self.durable_names, *change)

    def _revoke(self) -> None:
        self.holder = None
        self._beside.clear()
        self.fault = None


def _enter(entries: Entries, old: str | None, new: str | None, content: Content) -> None:
    if old is not None and entries.get(old) is content:
        del entries[old]
    if new is not None:
        entries[new] = content


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
        return self._find("size", name).seen.length

    def length_of(self, name: str, file: File) -> int | None:
        self._disk.operate(self, "length_of", name)
        if not isinstance(file, FakeFile) or self._disk.names.get(name) is not file.content:
            return None
        return file.content.seen.length

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        return self._find("read", name).seen.read(offset, count)

    def hold(self, name: str) -> FakeHeldFile:
        return FakeHeldFile(self._disk, self, name, self._find("hold", name))

    def link(self, name: str, other: Directory, new: str) -> None:
        """A file of two disks is one file; only the name is this disk's own."""
        assert isinstance(other, FakeDirectory)
        content = self._existing(name)
        other._disk.operate(other, "link", new)
        if new in other._disk.names:
            raise FileExistsError(errno.EEXIST, "File exists", new)
        other._disk.change_entry(None, new, content)

    def create(self, name: str) -> FakeFile:
        self._disk.operate(self, "create", name)
        if name in self._disk.names:
            raise FileExistsError(errno.EEXIST, "File exists", name)
        if self._disk.free_bytes < SECTOR_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device", name)
        content = Content()
        self._disk.change_entry(None, name, content)
        return FakeFile(self._disk, self, name, content, 0)

    def open(self, name: str, offset: int) -> FakeFile:
        return FakeFile(self._disk, self, name, self._find("open", name), offset)

    def rename(self, old: str, new: str) -> None:
        self._disk.operate(self, "rename", new)
        self._disk.change_entry(old, new, self._existing(old))

    def remove(self, name: str) -> None:
        self._disk.change_entry(name, None, self._find("remove", name))

    def sync(self) -> None:
        self._disk.operate(self, "sync_directory", "")
        self._disk.sync_entries()

    def random_bytes(self, count: int) -> bytes:
        return self._disk.random_bytes(count)

    def free_bytes(self) -> int:
        self._disk.operate(self, "free_bytes", "")
        return self._disk.free_bytes

    def capacity_bytes(self) -> int:
        self._disk.operate(self, "capacity_bytes", "")
        return PLENTY_BYTES if self._disk.capacity_bytes is None else self._disk.capacity_bytes

    def is_in_place(self) -> bool:
        self._disk.operate(self, "is_in_place", "")
        return True

    def close(self) -> None:
        self._disk.release(self)

    def _find(self, operation: str, name: str) -> Content:
        self._disk.operate(self, operation, name)
        return self._existing(name)

    def _existing(self, name: str) -> Content:
        if name not in self._disk.names:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
        return self._disk.names[name]


class FakeHeldFile:
    """`wal.files.HeldFile` on a fake disk."""

    def __init__(self, disk: FakeDisk, directory: FakeDirectory, name: str, content: Content) -> None:
        self._disk = disk
        self._directory = directory
        self._name = name
        self._content = content

    def size(self) -> int:
        self._disk.operate(self._directory, "size", self._name)
        return self._content.seen.length

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        self._disk.operate(self._directory, "read", self._name)
        return self._content.seen.read(offset, count)

    def close(self) -> None:
        """Nothing to give back."""


class FakeFile:
    """`wal.files.File` on a fake disk."""

    def __init__(self, disk: FakeDisk, directory: FakeDirectory, name: str, content: Content, offset: int) -> None:
        self.content = content
        self._disk = disk
        self._directory = directory
        self._name = name
        self._offset = offset

    def write(self, data: bytes) -> None:
        try:
            self._disk.operate(self._directory, "write", self._name)
        except OSError:
            if self._disk.torn is not None and self._disk.is_alive(self._directory):
                self._write(data[: self._disk.torn.randint(0, len(data))])
            raise
        fits = self._disk.room(self.content, self._offset + len(data)) - self._offset
        self._write(data[:fits])
        if fits < len(data):
            raise OSError(errno.ENOSPC, "No space left on device", self._name)

    def sync(self) -> None:
        try:
            self._disk.operate(self._directory, "sync", self._name)
        except OSError:
            if self._disk.is_alive(self._directory):
                self.content.fail_to_sync(self._disk.torn)
            raise
        self.content.sync()

    def truncate(self, size_bytes: int) -> None:
        self._disk.operate(self._directory, "truncate", self._name)
        self.content.resize(size_bytes)
        self._offset = min(self._offset, size_bytes)

    def rewind(self) -> None:
        self._offset = 0

    def allocate(self, size_bytes: int) -> None:
        self._disk.operate(self._directory, "allocate", self._name)
        if not self._disk.allocates:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported", self._name)
        fits = self._disk.room(self.content, size_bytes)
        if fits > self.content.seen.length:
            self.content.resize(fits)
        if fits < size_bytes:
            raise OSError(errno.ENOSPC, "No space left on device", self._name)

    def close(self) -> None:
        """Nothing to give back."""

    def _write(self, data: bytes) -> None:
        if data:
            self.content.write(self._offset, data)
            self._offset += len(data)
