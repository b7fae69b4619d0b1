"""The fake disk: what survives a power cut, and what fits."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable

import pytest

from tests.harness.content import SECTOR_BYTES
from tests.harness.disk import FakeDirectory, FakeDisk, failing

CUTS = 300


def outcomes(prepare: Callable[[FakeDirectory], None]) -> list[dict[str, bytes]]:
    """What many power cuts leave after the same operations."""
    found = []
    for seed in range(CUTS):
        disk = FakeDisk()
        prepare(disk.directory())
        disk.cut_power(random.Random(seed))
        found.append(disk.content())
    return found


def test_any_of_the_unsynced_sectors_survives_and_what_was_synced_stays() -> None:
    """B13"""

    def prepare(directory: FakeDirectory) -> None:
        file = directory.create("a")
        file.write(b"0" * 10)
        file.sync()
        directory.sync()
        file.write(b"1" * (3 * SECTOR_BYTES - 10))

    contents = [found["a"] for found in outcomes(prepare)]
    assert all(content.startswith(b"0" * 10) for content in contents)
    assert {len(content) for content in contents} == {10, 3 * SECTOR_BYTES}
    full = [content for content in contents if len(content) > 10]
    sectors = {tuple(content[at * SECTOR_BYTES + 20] == ord("1") for at in range(3)) for content in full}
    assert len(sectors) == 8


def test_a_sector_that_is_overwritten_holds_the_old_or_the_new() -> None:
    """B13"""

    def prepare(directory: FakeDirectory) -> None:
        file = directory.create("a")
        file.write(b"old" * 1000)
        file.sync()
        directory.sync()
        file = directory.open("a", 0)
        file.write(b"new" * 100)

    assert {found["a"][:3] for found in outcomes(prepare)} == {b"old", b"new"}
    assert all(found["a"][1024:] == (b"old" * 1000)[1024:] for found in outcomes(prepare))


def test_a_sector_written_twice_may_hold_what_was_written_first() -> None:
    def prepare(directory: FakeDirectory) -> None:
        file = directory.create("a")
        directory.sync()
        file.write(b"first")
        directory.open("a", 0).write(b"again")

    assert {b"", b"\0" * 5, b"first", b"again"} <= {found["a"] for found in outcomes(prepare)}


def test_any_of_the_unsynced_names_survives_and_a_rename_is_one_change() -> None:
    """B13"""

    def prepare(directory: FakeDirectory) -> None:
        for name in ("a", "b"):
            directory.create(name).close()
        directory.sync()
        directory.rename("a", "c")
        directory.remove("b")
        directory.create("d").close()

    names = {"".join(found) for found in outcomes(prepare)}
    assert names == {"a", "ab", "abd", "ad", "c", "bc", "bcd", "cd"}


def test_after_a_failed_sync_what_was_to_be_synced_is_not_on_disk_whatever_a_later_sync_says() -> None:
    """B1"""
    disk = FakeDisk()
    file = disk.directory().create("a")
    disk.sync_entries()
    disk.fault = failing("sync")
    file.write(b"gone")
    with pytest.raises(OSError, match="injected"):
        file.sync()
    disk.fault = None
    assert disk.get("a") == b"gone"
    file.write(b"kept")
    file.sync()
    disk.cut_power()
    assert disk.get("a") == b"\0\0\0\0kept"


def test_what_is_allocated_is_volatile_until_it_is_synced() -> None:
    disk = FakeDisk(allocates=True)
    directory = disk.directory()
    file = directory.create("a")
    directory.sync()
    file.allocate(10_000)
    assert directory.size("a") == 10_000
    disk.cut_power()
    assert disk.content() == {"a": b""}


def test_a_full_disk_takes_what_fits_and_gives_back_what_is_removed() -> None:
    disk = FakeDisk(allocates=True, capacity_bytes=10 * SECTOR_BYTES)
    directory = disk.directory()
    file = directory.create("a")
    file.allocate(5 * SECTOR_BYTES)
    assert directory.free_bytes() == 4 * SECTOR_BYTES
    with pytest.raises(OSError, match="No space") as full:
        file.allocate(20 * SECTOR_BYTES)
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        directory.create("b")
    file.write(b"x" * 9 * SECTOR_BYTES)
    with pytest.raises(OSError, match="No space"):
        file.write(b"x")
    file.truncate(SECTOR_BYTES)
    assert directory.free_bytes() == 8 * SECTOR_BYTES
    directory.remove("a")
    assert directory.free_bytes() == directory.capacity_bytes() == 10 * SECTOR_BYTES


def test_a_process_beside_the_holder_dies_with_the_machine() -> None:
    disk = FakeDisk()
    disk.directory()
    beside = disk.beside()
    beside.create("a").close()
    beside.close()
    beside = disk.beside()
    disk.kill()
    with pytest.raises(OSError, match="was killed"):
        beside.create("b")
