"""A small file system of one's own, to be filled up: in a mount namespace that only its users see, and gone with it.

with SmallDisk(tmp_path, "tmpfs") as disk:
    server = Server(disk.path / "data", under=disk.enter)
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness.process import ROOT

_SIZES = {"tmpfs": "16M", "ext4": "16M", "btrfs": "128M", "xfs": "304M"}
"""As small as each can be made."""

_MOUNT = {
    "tmpfs": "mount -t tmpfs -o size={size},mode=700 tmpfs {path}",
    **{
        kind: f"truncate -s {{size}} {{path}}.image && mkfs.{kind} -q {{path}}.image >&2"
        " && mount -o loop {path}.image {path} && chmod 700 {path}"
        for kind in ("ext4", "btrfs", "xfs")
    },
}

_HAS_LOOPS = os.geteuid() == 0 and Path("/dev/loop-control").exists()
KINDS = ("tmpfs", *(kind for kind in ("ext4", "btrfs", "xfs") if _HAS_LOOPS and shutil.which(f"mkfs.{kind}")))
"""What can be mounted here: as root, whatever has its tool."""

_NAMESPACES = {
    "--mount": ("--mount",),
    "--map-root-user --mount": ("--user", "--preserve-credentials", "--mount"),
}
"""Options of unshare, and those of nsenter for the same: as root, and as anybody where user namespaces are allowed."""


class SmallDisk:
    """A small disk.

    Args:
        scratch: a directory; the disk is mounted in it.
        kind: one of `KINDS`; all but tmpfs take root and a loop device.
    """

    def __init__(self, scratch: Path, kind: str) -> None:
        self.path = scratch / "disk"
        self.path.mkdir()
        self._kind = kind
        self._holder: subprocess.Popen[str]
        self.enter: list[str] = []

    def __enter__(self) -> Self:
        mount = _MOUNT[self._kind].format(size=_SIZES[self._kind], path=self.path)
        script = f"{mount} && echo mounted && exec sleep infinity"
        complaints = []
        for unshare, nsenter in _NAMESPACES.items():
            command = ["unshare", *unshare.split(), "sh", "-c", script]
            self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            assert self._holder.stdout is not None
            if self._holder.stdout.readline() == "mounted\n":
                self.enter = ["nsenter", f"--target={self._holder.pid}", *nsenter, f"--wdns={ROOT}"]
                return self
            complaints.append(f"{' '.join(command[:3])}: {self._holder.communicate()[1]}")
        raise AssertionError(f"no {self._kind} can be mounted here; root, or user namespaces, are needed: {complaints}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._holder.kill()
        self._holder.communicate()

    @property
    def seen_from_here(self) -> Path:
        """Where this process, which is not in the namespace, finds the disk."""
        return Path(f"/proc/{self._holder.pid}/root{self.path}")
