"""Whose directories are used, and to whom belongs what root makes in them. B16."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.process import ROOT
from wal.files import LOCK_NAME, DiskDirectory
from wal.places import complaint_about

WE, ANOTHER, OURS, FOREIGN = 1000, 1001, 2000, 3000
"""Two users, a group of the first one's, and one that is not."""


def status_of(mode: int, user: int, group: int) -> os.stat_result:
    return os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "user", "why"),
    [
        (0o700, WE, OURS, WE, None),
        (0o755, WE, OURS, WE, None),
        (0o2770, 0, OURS, WE, None),  # a volume of Kubernetes, by fsGroup
        (0o2775, 0, OURS, WE, None),
        (0o775, WE, OURS, WE, None),  # umask 002
        (0o770, ANOTHER, OURS, WE, None),  # it was ours before the image had another user
        (0o770, WE, FOREIGN, WE, "may be written by group 3000, which this process is not in (mode 0770): chmod g-w"),
        (0o770, ANOTHER, FOREIGN, WE, "belongs to user 1001, but this process runs as user 1000"),
        (0o700, ANOTHER, OURS, WE, "belongs to user 1001, but this process runs as user 1000"),
        (0o755, 0, OURS, WE, "belongs to user 0, but this process runs as user 1000"),
        (0o777, WE, OURS, WE, "may be written by everybody (mode 0777)"),
        (0o1777, 0, OURS, WE, "may be written by everybody (mode 1777)"),
        (0o702, WE, OURS, WE, "may be written by everybody (mode 0702)"),
        (0o777, ANOTHER, OURS, 0, "may be written by everybody (mode 0777)"),
        (0o700, ANOTHER, FOREIGN, 0, None),  # root acts for the owner
        (0o770, ANOTHER, FOREIGN, 0, None),
        (0o770, 0, FOREIGN, 0, "may be written by group 3000"),
    ],
)
def test_a_directory_is_used_by_its_owner_and_by_the_group_that_may_write_there(
    mode: int, owner: int, group: int, user: int, why: str | None
) -> None:
    found = complaint_about(Path("/d"), status_of(mode, owner, group), user, {WE, OURS})
    assert (found is None) == (why is None), found
    assert why is None or (found or "").startswith(why), found


def test_whoever_only_reads_may_read_what_the_system_lets_them_read(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    path.chmod(0o777)
    DiskDirectory(path, beside=True).close()


def test_a_pipe_in_the_place_of_a_file_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "MANIFEST")
    directory = DiskDirectory(tmp_path, beside=True)
    for reading in (directory.read, directory.hold):
        with pytest.raises(OSError, match="it is not a plain file"):
            reading("MANIFEST")
    directory.close()


# With other users than root


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


RECOVER = """
import os, sys
from pathlib import Path
from wal.files import DiskDirectory
from wal.log import Log

user, path, *groups = sys.argv[1:]
os.setgroups(list(map(int, groups)))
os.setgid(int(user))
os.setuid(int(user))
log = Log.recover(DiskDirectory(Path(path)), lambda _frame: None, time_ms=1)
log.append([bytes([0x91, 1])], 1)
log.close()
"""


def recover_as(user: int, path: Path, *groups: int) -> None:
    """Opens and closes a log as another user; Python itself is started by us, for it may lie where only we can go."""
    words = [sys.executable, "-c", RECOVER, *map(str, (user, path, *groups))]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_volume_of_kubernetes_serves_a_user_of_its_group(place: Path) -> None:
    volume = place / "volume"
    volume.mkdir()
    os.chown(volume, 0, OURS)
    volume.chmod(0o2770)
    for _ in range(2):
        recover_as(WE, volume, OURS)
    assert {(file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) for file in volume.iterdir()} == {(WE, 0o600)}


def test_what_root_makes_in_somebodys_directory_belongs_to_that_somebody(place: Path) -> None:
    theirs = place / "theirs"
    theirs.mkdir()
    os.chown(theirs, WE, OURS)
    directory = DiskDirectory(theirs / "below" / "data")
    directory.create("file").close()
    directory.close()
    made = [theirs / "below", Path(directory.path), *Path(directory.path).iterdir()]
    assert {path.name for path in made} == {"below", "data", LOCK_NAME, "file"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(WE, OURS)}
    recover_as(WE, theirs / "below" / "data")


def test_root_gives_a_new_directory_to_whom_it_is_told(place: Path) -> None:
    directory = DiskDirectory(place / "copy", owner=(WE, OURS))
    directory.create("file").close()
    assert directory.owner == (WE, OURS)
    directory.close()
    assert (place / "copy" / "file").stat().st_uid == WE
