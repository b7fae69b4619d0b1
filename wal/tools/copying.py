"""Giving a file of a log a second place: by a second name where the file system can, else by a copy.

A second name is as good as a copy for a file that nobody writes to in place any more. Sealed segments and snapshots are
such files, and whoever mends a log replaces files and does not write to them (`wal/tools/repair.py`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from wal.files import Directory, Readable
from wal.segment import begin_file, finish_file
from wal.snapshot import READ_BYTES

_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


def link_or_copy(
    directory: Directory, name: str, source: Readable, target: Directory, new: str, said: Callable[[int], None]
) -> bool:
    """Gives a file a second name, or copies it; a name is durable only when `target` has been synced.

    Args:
        directory: where the file is.
        name: of the file.
        source: where it can be read also when its name is gone.
        target: where the second one is to be.
        new: its name there.
        said: told how many bytes have been copied, now and then.

    Returns:
        Whether it is the same file.

    Raises:
        OSError: the disk refused.
    """
    try:
        directory.link(name, target, new)
    except FileNotFoundError:
        pass  # a server has removed it, but we still hold it
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
    else:
        return True
    _copy(source, name, target, new, said)
    return False


def _copy(source: Readable, name: str, target: Directory, new: str, said: Callable[[int], None]) -> None:
    """Copies a file, durably; a power cut leaves all of it or nothing."""
    size_bytes = source.size(name)
    file = begin_file(target, new)
    done = 0
    try:
        while (rest := size_bytes - done) > READ_BYTES:
            file.write(_read(source, name, done, READ_BYTES))
            file.sync()  # now and then: one large sync at the end would hold up those of a server
            done += READ_BYTES
            said(done)
        last = _read(source, name, done, rest)
    except BaseException:
        file.close()
        raise
    finish_file(target, new, file, last).close()
    said(size_bytes)


def _read(source: Readable, name: str, offset: int, count: int) -> bytes:
    data = source.read(name, offset, count)
    if len(data) < count:
        raise OSError(errno.EIO, "the file became shorter while it was copied", name)
    return data
