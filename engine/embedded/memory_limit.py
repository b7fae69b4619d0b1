"""How much memory the container that this process runs in still has to give: its cgroups, of either version.

In Kubernetes the kernel ends everything in a container that reaches its limit (`memory.oom.group`), the server too. So
who takes much memory beside a server looks here first, and takes no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

UNLIMITED_BYTES = 1 << 60
"""cgroup v1 says so with a number that is larger than this."""

_MOUNTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))


def free_bytes(groups: str | None = None, mounts: tuple[Path, Path] = _MOUNTS) -> int | None:
    """What the tightest of the cgroups around this process has left, in bytes; None when none of them has a limit.

    Files that the kernel keeps in memory count as free: it gives them up first.

    Args:
        groups: what `/proc/self/cgroup` says; None reads it.
        mounts: where the cgroups of version 1 and 2 are found.
    """
    if groups is None:
        with suppress(OSError):
            groups = Path("/proc/self/cgroup").read_text()
    found: list[int] = []
    for line in (groups or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += _in_version_2(mounts[1], path)
        elif "memory" in controllers.split(","):
            found += _in_version_1(mounts[0], path)
    return max(0, min(found)) if found else None


def _in_version_2(mount: Path, path: str) -> Iterator[int]:
    for group in _and_above(mount, path):
        with suppress(OSError, ValueError):  # the root has none of these files, and "max" is no number
            limits = [int(limit) for name in ("memory.max", "memory.high") if (limit := _word(group / name)) != "max"]
            if limits:
                yield (
                    min(limits) - int(_word(group / "memory.current")) + _cached(group, "active_file", "inactive_file")
                )


def _in_version_1(mount: Path, path: str) -> Iterator[int]:
    for group in _and_above(mount, path):
        with suppress(OSError, ValueError):
            limit = int(_word(group / "memory.limit_in_bytes"))
            if limit < UNLIMITED_BYTES:
                cached = _cached(group, "total_active_file", "total_inactive_file")
                yield limit - int(_word(group / "memory.usage_in_bytes")) + cached


def _and_above(mount: Path, path: str) -> list[Path]:
    """A cgroup and those around it; in a container the path may be one of the host's, and the mount is the cgroup."""
    inner = PurePosixPath(path.lstrip("/"))
    groups = [mount / part for part in (inner, *inner.parents)]
    return [group for group in groups if group.is_dir()] or [mount]


def _word(file: Path) -> str:
    return file.read_text().strip()


def _cached(group: Path, *names: str) -> int:
    """How much of its memory are files that the kernel keeps."""
    counts = dict(line.split(" ", 1) for line in _word(group / "memory.stat").splitlines())
    return sum(int(counts.get(name, 0)) for name in names)
