"""The only module that touches the file system: the real `Directory` and `File` of the seam (wal/seam.py).

Rules that hold here:
- Names are plain file names inside one data directory; nothing reaches outside it.
- `write` loops until every byte is handed over or raises; nobody above ever sees a short write.
- Nothing is durable before `File.sync` (contents) and `Directory.sync` (names) have returned.
- A directory may be used by several threads at once: every call names files relative to the descriptor that was locked,
  which no call moves. A file may not: its offset moves with what is written.
- Directories are made 0700 and files 0600, whatever the umask; a lock is taken with flock, because a POSIX
  lock gives no protection within a process and is dropped by any close of the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from wal.seam import Directory as Directory
from wal.seam import File as File
from wal.seam import HeldFile as HeldFile
from wal.seam import Readable as Readable

LOCK_NAME = "LOCK"

_WRITING = os.O_RDWR
"""Nothing is read there by us; the C library does, where it allocates in place of a file system that cannot."""


_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_NO_COPY_ON_WRITE = 0x00800000
"""FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_NOCOW_FL of <linux/fs.h>."""


class LockedError(Exception):
    """Another process holds the data directory. `holder` is what it wrote about itself."""

    def __init__(self, directory: str, holder: str) -> None:
        super().__init__(f"data directory {directory} is in use by {holder}")
        self.holder = holder


class DirectoryError(Exception):
    """The data directory cannot be used as it is: not a directory, not ours, open to others."""


class DiskFile:
    """A `File` on disk, held by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        status = os.fstat(descriptor)
        self._identity = (status.st_dev, status.st_ino)

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        with _naming(self._descriptor):
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def sync(self) -> None:
        with _naming(self._descriptor):
            os.fdatasync(self._descriptor)

    def truncate(self, size_bytes: int) -> None:
        with _naming(self._descriptor):
            os.ftruncate(self._descriptor, size_bytes)
            if os.lseek(self._descriptor, 0, os.SEEK_CUR) > size_bytes:
                os.lseek(self._descriptor, size_bytes, os.SEEK_SET)

    def rewind(self) -> None:
        os.lseek(self._descriptor, 0, os.SEEK_SET)

    def allocate(self, size_bytes: int) -> None:
        with _naming(self._descriptor):
            os.posix_fallocate(self._descriptor, 0, size_bytes)

    def length_at(self, name: str, directory: int) -> int | None:
        """Length of the file if `name` in the directory with that descriptor leads to it. One system call."""
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size if (found.st_dev, found.st_ino) == self._identity else None

    def close(self) -> None:
        # The number may soon belong to another file: whoever writes on must get an error, not that file.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class DiskHeldFile:
    """A `HeldFile` on disk, held by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        with _naming(self._descriptor), open(self._descriptor, "rb", closefd=False) as file:
            file.seek(offset)
            return file.read() if count is None else file.read(count)

    def close(self) -> None:
        os.close(self._descriptor)


class DiskDirectory:
    """A `Directory` on disk; opening it takes the lock.

    Args:
        path: where it is.
        beside: open an existing directory without the lock, beside a server that may run on it: for whoever reads, and
            for the process that writes a snapshot under a name of its own.

    Raises:
        DirectoryError: it is no directory, belongs to another user, or others may write to it.
        LockedError: another server holds it.
        OSError: the system refused something else.
    """

    def __init__(self, path: Path, *, beside: bool = False) -> None:
        self._path = path.absolute()
        self._lock_descriptor: int | None = None
        if not beside:
            _make_directory_or_refuse(self._path)
        self._descriptor = _open_directory(self._path)
        try:
            if not beside:
                self._lock_descriptor = self._lock()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def path(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        # A descriptor of this call's own: how far a listing is belongs to the open directory, and copies of a
        # descriptor share it. Two threads that list through one see names twice, or none at all.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._descriptor)
        try:
            with os.scandir(descriptor) as entries:
                return sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        finally:
            os.close(descriptor)

    def size(self, name: str) -> int:
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_size

    def length_of(self, name: str, file: File) -> int | None:
        return file.length_at(name, self._descriptor) if isinstance(file, DiskFile) else None

    def read(self, name: str, offset: int = 0, count: int | None = None) -> bytes:
        descriptor = self._open(name, os.O_RDONLY)
        with open(descriptor, "rb") as file, _naming(descriptor):
            file.seek(offset)
            return file.read() if count is None else file.read(count)

    def hold(self, name: str) -> HeldFile:
        return DiskHeldFile(self._open(name, os.O_RDONLY))

    def link(self, name: str, other: Directory, new: str) -> None:
        assert isinstance(other, DiskDirectory), "both are on disk"
        os.link(name, new, src_dir_fd=self._descriptor, dst_dir_fd=other._descriptor, follow_symlinks=False)

    def create(self, name: str) -> File:
        descriptor = self._open(name, _WRITING | os.O_CREAT | os.O_EXCL)
        os.fchmod(descriptor, 0o600)
        _write_in_place(descriptor)
        return DiskFile(descriptor)

    def open(self, name: str, offset: int) -> File:
        descriptor = self._open(name, _WRITING)
        os.lseek(descriptor, offset, os.SEEK_SET)
        return DiskFile(descriptor)

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        os.unlink(name, dir_fd=self._descriptor)

    def sync(self) -> None:
        with _naming(self._descriptor):
            os.fsync(self._descriptor)

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)

    def free_bytes(self) -> int:
        disk = os.fstatvfs(self._descriptor)
        return disk.f_bavail * disk.f_frsize

    def capacity_bytes(self) -> int:
        disk = os.fstatvfs(self._descriptor)
        return disk.f_blocks * disk.f_frsize

    def is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
        os.close(self._descriptor)

    def _open(self, name: str, flags: int) -> int:
        # Relative to the descriptor that was locked: a directory swapped in under the same path stays untouched.
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._descriptor)

    def _lock(self) -> int:
        """Locks the directory, and the file in it that names the holder.

        The directory first: whoever removes the file, thinking it stale, must not let a second server in.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(self.path, self._holder()) from None
        try:
            descriptor = self._open(LOCK_NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise DirectoryError(f"{self.path}/{LOCK_NAME} is a symbolic link") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise LockedError(self.path, self._holder()) from None
            raise
        with contextlib.suppress(OSError):  # only a courtesy to whoever comes second; a full disk must not stop us
            os.fchmod(descriptor, 0o600)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()}\n".encode(), 0)
        return descriptor

    def _holder(self) -> str:
        """What the holder of the lock wrote about itself."""
        with contextlib.suppress(OSError):
            descriptor = self._open(LOCK_NAME, os.O_RDONLY)
            with open(descriptor, "rb") as file:
                return file.read(200).decode("utf-8", "replace").strip() or "another process"
        return "another process"


def _write_in_place(descriptor: int) -> None:
    """Has btrfs write over what it has allocated for a new file, instead of taking new room each time (`chattr +C`).

    Else its word that there is room means nothing: a page that is written for the second time needs some. Its checksums
    go with it; the log has its own. Other file systems do so anyway, and refuse the flag.
    """
    with contextlib.suppress(OSError):
        flags = struct.unpack("=l", fcntl.ioctl(descriptor, _GET_FLAGS, bytes(4)))[0]
        fcntl.ioctl(descriptor, _SET_FLAGS, struct.pack("=l", flags | _NO_COPY_ON_WRITE))


@contextlib.contextmanager
def _naming(descriptor: int) -> Iterator[None]:
    """Has an error say which file it is about: the system knows only the descriptor."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            error.filename = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        raise


def _make_directory(path: Path) -> None:
    """Makes a directory, and those above it that are missing, each 0700 whatever the umask and on disk."""
    if not path.parent.exists():
        _make_directory(path.parent)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        # A start that was killed may have made it without getting this far; above a mount point it may not be possible.
        with contextlib.suppress(OSError):
            _sync_directory(path.parent)
    else:
        path.chmod(0o700)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_directory_or_refuse(path: Path) -> None:
    try:
        _make_directory(path)
    except NotADirectoryError:
        raise DirectoryError(f"{path} is not a directory") from None


def _open_directory(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise DirectoryError(f"{path} is not a directory") from None
    status = os.fstat(descriptor)
    complaint = None
    if status.st_uid != os.geteuid():
        complaint = f"belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}"
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        complaint = f"may be written by others (mode {stat.S_IMODE(status.st_mode):04o}); chmod 700 mends that"
    if complaint is not None:
        os.close(descriptor)
        raise DirectoryError(f"data directory {path} {complaint}")
    return descriptor
