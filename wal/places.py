"""Where a data directory may be, who may use it, and to whom belongs what is made there.

The log is worth what its directory is: whoever may write there can remove it, or put another in its place. So a
directory is used for writing only when everybody who may write there is trusted with it already:

- **its owner**, whom this process runs as; and root, who may do anything;
- **the members of its group**, when this process is one of them. That is how Kubernetes hands out a volume (`fsGroup`:
  root's, mode 2770, the group among those of the process), and how many systems make a user's directories (umask 002);
- never everybody.

Root acts for the owner: what root makes in somebody's directory belongs to that somebody, who could not use it else.
Whoever only reads may read what the system lets them read.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection
from pathlib import Path

Owner = tuple[int, int]
"""Numbers of a user and a group."""

ROOT_USER = 0


class DirectoryError(Exception):
    """The data directory cannot be used as it is: not a directory, not ours, open to others."""


def owner_for_root(status: os.stat_result) -> Owner | None:
    """To whom belongs what is made in a directory, if not to this process; only root gives things away."""
    if os.geteuid() != ROOT_USER or status.st_uid == ROOT_USER:
        return None
    return status.st_uid, status.st_gid


def open_to_read(path: Path) -> int:
    """Opens a directory.

    Raises:
        DirectoryError: it is none.
        OSError: the system refused.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise DirectoryError(f"{path} is not a directory") from None


def open_to_write(path: Path, owner: Owner | None) -> int:
    """Opens a directory that nobody but those we trust may write to; makes it when it is not there.

    Args:
        path: where it is.
        owner: to whom a new one is to belong, if this process is root; None is the owner of the one above.

    Raises:
        DirectoryError: it is none, or others may write to it.
        OSError: the system refused.
    """
    try:
        _make_directory(path, owner)
    except NotADirectoryError:
        raise DirectoryError(f"{path} is not a directory") from None
    descriptor = open_to_read(path)
    complaint = complaint_about(path, os.fstat(descriptor), os.geteuid(), {os.getegid(), *os.getgroups()})
    if complaint is not None:
        os.close(descriptor)
        raise DirectoryError(f"data directory {path} {complaint}")
    return descriptor


def complaint_about(path: Path, status: os.stat_result, user: int, groups: Collection[int]) -> str | None:
    """Says why a directory must not be written to, and what to do; None when it may be.

    Args:
        path: where it is.
        status: of it.
        user: whom this process runs as.
        groups: those that it is in.
    """
    mode = f"mode {stat.S_IMODE(status.st_mode):04o}"
    below = f"or name a directory below it, like {path}/holdfast, which Holdfast makes for itself alone"
    if status.st_mode & stat.S_IWOTH:
        return f"may be written by everybody ({mode}): take that away (chmod o-w), {below}"
    for_group = bool(status.st_mode & stat.S_IWGRP)
    if for_group and status.st_gid in groups:
        return None
    if status.st_uid != user and user != ROOT_USER:
        return (
            f"belongs to user {status.st_uid}, but this process runs as user {user}, and no group of it may write there"
            f" ({mode}): run it as user {status.st_uid}, or give this user the directory (chown -R {user})"
        )
    if for_group and status.st_uid == user:
        return f"may be written by group {status.st_gid}, which this process is not in ({mode}): chmod g-w it, {below}"
    return None


def _make_directory(path: Path, owner: Owner | None) -> None:
    """Makes a directory, and those above it that are missing, each 0700 whatever the umask and on disk."""
    if not path.parent.exists():
        _make_directory(path.parent, owner)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        # A start that was killed may have made it without getting this far; above a mount point it may not be possible.
        with contextlib.suppress(OSError):
            _sync_directory(path.parent)
    else:
        path.chmod(0o700)
        owner = owner_for_root(path.parent.stat()) if owner is None else owner
        if owner is not None and os.geteuid() == ROOT_USER:
            os.chown(path, *owner, follow_symlinks=False)
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
