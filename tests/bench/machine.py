"""What the figures were taken on: processor, system, versions, and how fast the disk syncs."""

from __future__ import annotations

import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

SYNCS = 300
SYNC_BYTES = 4096

VERSIONS: dict[str, tuple[Sequence[str], str]] = {
    "Redis": (("redis-server", "--version"), r"v=([0-9.]+)"),
    "Webdis": (("dpkg-query", "-W", "-f", "${Version}", "webdis"), r"^([0-9.]+)"),
    "beanstalkd": (("beanstalkd", "-v"), r"beanstalkd ([0-9.]+)"),
    "Go": (("go", "version"), r"go([0-9.]+)"),
    "wrk": (("wrk", "-v"), r"([0-9]+\.[0-9.]+)"),
}
"""How each program tells its version, and where in what it says."""


def version_of(command: Sequence[str], pattern: str) -> str:
    """The version that a program tells, on stdout or stderr, whatever its exit code."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return "of unknown version"
    found = re.search(pattern, told.stdout + told.stderr)
    return found[1] if found else "of unknown version"


def processor(cpuinfo: str) -> str:
    """The model, from the text of /proc/cpuinfo."""
    found = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def sync_ms(directory: Path) -> float:
    """Median time of an appended page and its fdatasync, in milliseconds."""
    taken_s = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNCS):
            started_s = time.perf_counter()
            file.write(bytes(SYNC_BYTES))
            os.fdatasync(file.fileno())
            taken_s.append(time.perf_counter() - started_s)
    return statistics.median(taken_s) * 1000


def describe(directory: Path, programs: Iterable[str] = VERSIONS) -> list[str]:
    """Lines of Markdown about this machine, the disk of a directory, and the versions of some programs."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3
    kind = ["findmnt", "-no", "FSTYPE", "-T", str(directory)]
    file_system = subprocess.run(kind, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    versions = ", ".join(f"{name} {version_of(*VERSIONS[name])}" for name in programs)
    model = processor(Path("/proc/cpuinfo").read_text())
    sync = f"appending a page and `fdatasync` take {sync_ms(directory):.2f} ms at the median"
    return [
        f"{model}, {cores} cores, {memory_gib:.0f} GiB, Linux {platform.release()}.",
        f"Data on {file_system or 'an unknown file system'}; {sync}.",
        f"Python {platform.python_version()}, {versions}.",
        f"Load average of the machine before: {os.getloadavg()[0]:.2f}.",
    ]
