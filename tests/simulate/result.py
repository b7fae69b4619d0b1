"""What came of a simulation."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass
class Result:
    """What came of a seed: sums, and what was violated."""

    seeds: int = 1
    operations: int = 0
    pipelines: int = 0
    units: int = 0
    refused_units: int = 0
    stops: int = 0
    kills: int = 0
    power_cuts: int = 0
    failures: int = 0
    starts: int = 0
    faults: int = 0
    flips: int = 0
    checkpoints: int = 0
    virtual_ms: int = 0

    def add(self, other: Result) -> None:
        """Adds another's sums."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    @property
    def crashes(self) -> int:
        """Ends that were not clean stops."""
        return self.kills + self.power_cuts + self.failures

    def __str__(self) -> str:
        return (
            f"{self.operations} operations, among them {self.pipelines} pipelines and {self.units} units, of which"
            f" {self.refused_units} were refused; {self.crashes} crashes ({self.kills} kills, {self.power_cuts} power"
            f" cuts, {self.failures} failures of the engine), {self.stops} clean stops, {self.starts} starts,"
            f" {self.faults} errors injected, {self.flips} bits flipped, {self.checkpoints} checkpoints,"
            f" {self.virtual_ms / 3_600_000:.2f} simulated hours"
        )
