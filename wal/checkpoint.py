"""What a checkpoint changes in the log: sealed segments go, and a snapshot takes their place.

    plan_fold -> another process folds, under a temporary name -> install: name, then manifest -> remove_folded

The plan names what is folded word for word, so the other process needs nothing else of the log, which goes on growing
meanwhile. The manifest decides: until it names the snapshot, what is folded is part of the log; from then on, the
snapshot is. A crash leaves the other one on the disk, and the next start removes it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from wal.files import Directory
from wal.log_files import LogFiles, refusal
from wal.manifest import Snapshot
from wal.segment import SEGMENT_ID_BYTES, segment_name, segment_number, snapshot_number
from wal.snapshot import FoldPlan


def plan_fold(files: LogFiles) -> FoldPlan | None:
    """Says what is to be folded; None when no segment is sealed."""
    sealed = files.manifest.segments[:-1]
    if not sealed:
        return None
    folded = replace(files.manifest, segments=sealed, clean_close=None)
    snapshot_id = files.directory.random_bytes(SEGMENT_ID_BYTES)
    return FoldPlan(folded, replace(files.open.header, number=sealed[-1][0], segment_id=snapshot_id))


def written_bytes(directory: Directory, plan: FoldPlan) -> int:
    """How much of a snapshot that is being written is on the disk already."""
    try:
        return directory.size(plan.temporary_name)
    except FileNotFoundError:
        return 0


def install(files: LogFiles, plan: FoldPlan, snapshot: Snapshot) -> OSError | None:
    """Makes a snapshot part of the log; returns why not when there was no room, and nothing is left of it then."""
    refused = _give_name(files.directory, plan) or files.replace_manifest(files.manifest.with_snapshot(snapshot))
    if refused is not None:
        for name in (plan.name, plan.temporary_name):
            with suppress(OSError):  # the next start removes it as well
                files.directory.remove(name)
        return refused
    folded = {segment_name(number) for number, _ in plan.manifest.segments}
    files.sealed = {name: size for name, size in files.sealed.items() if name not in folded}
    return None


def _give_name(directory: Directory, plan: FoldPlan) -> OSError | None:
    """Gives a new snapshot its name, durably; returns why not when there was no room. No manifest names it yet."""
    with refusal() as refused:
        directory.rename(plan.temporary_name, plan.name)
        directory.sync()
    return refused[0] if refused else None


def discard(directory: Directory, plan: FoldPlan) -> None:
    """Removes what a fold may have left when its process was killed; the next start would as well."""
    with suppress(OSError):
        directory.remove(plan.temporary_name)


def remove_folded(directory: Directory, snapshot: Snapshot) -> None:
    """Removes what a snapshot made superfluous; the manifest that names it is durable. May raise OSError."""
    for name in directory.names():
        number = segment_number(name)
        folded = number is not None and number <= snapshot.number
        if folded or (snapshot_number(name) or snapshot.number) < snapshot.number:
            directory.remove(name)
    directory.sync()
