"""What a container leaves: cgroups of both versions, as files."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.embedded.memory_limit import free_bytes

NO_LIMIT_1 = "9223372036854771712"


def write(group: Path, **files: str) -> None:
    """Makes a cgroup; two underscores of a name are a dot."""
    group.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (group / name.replace("__", ".")).write_text(f"{content}\n")


def found(groups: str, mount: Path) -> int | None:
    """What is free, with both versions mounted in one place."""
    return free_bytes(groups, (mount / "memory", mount))


def test_the_limit_of_version_2_without_what_is_used_but_for_files(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b", memory__max="1000", memory__high="max", memory__current="600")
    write(tmp_path / "a" / "b", memory__stat="anon 300\ninactive_file 200\nactive_file 50\nslab 1")
    assert found("0::/a/b", tmp_path) == 1000 - 600 + 250


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    for path, limit, high in (("a", "900", "max"), ("a/b", "2000", "max"), ("a/b/c", "max", "1100")):
        write(tmp_path / path, memory__max=limit, memory__high=high, memory__current="500", memory__stat="anon 1")
    assert found("0::/a/b/c", tmp_path) == 400
    assert found("0::/a/b/c\n", tmp_path) == 400


def test_in_a_container_the_mount_is_the_group(tmp_path: Path) -> None:
    write(tmp_path, memory__max="800", memory__high="max", memory__current="900", memory__stat="inactive_file 50")
    assert found("0::/", tmp_path) == 0
    assert found("0::/kubepods/pod1", tmp_path) == 0


def test_the_limit_of_version_1(tmp_path: Path) -> None:
    limited, free = tmp_path / "memory/a", tmp_path / "memory"
    write(limited, memory__limit_in_bytes="1000", memory__usage_in_bytes="600", memory__stat="total_inactive_file 100")
    write(free, memory__limit_in_bytes=NO_LIMIT_1, memory__usage_in_bytes="5000", memory__stat="cache 1")
    assert found("9:cpu:/x\n4:memory:/a\n0::/", tmp_path) == 500


@pytest.mark.parametrize("groups", ["", "0::/", "4:memory:/", "4:memory:/gone\n0::/gone"])
def test_without_a_limit_there_is_none(tmp_path: Path, groups: str) -> None:
    write(tmp_path / "memory", memory__limit_in_bytes=NO_LIMIT_1, memory__usage_in_bytes="1", memory__stat="cache 1")
    write(tmp_path, memory__stat="anon 1")
    assert found(groups, tmp_path) is None


def test_what_this_machine_says_is_understood() -> None:
    free = free_bytes()
    assert free is None or free > 0
