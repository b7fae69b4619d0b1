"""Memory that was freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

from tests.harness.process import ROOT

KEEPS = """
import re, sys
from pathlib import Path
from api.server.allocator import give_memory_back

def resident_mib():
    return int(re.findall(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[0]) // 1024

if sys.argv[1] == "told":
    give_memory_back()
before = resident_mib()
del bytearray(600_000)[:]  # what glibc sees freed, it does not map by itself any more
pins = []
for _ in range(3):
    large = []
    for _ in range(100):
        large.append(bytes(600_000))
        pins.append(bytes(600))
    del large
print(resident_mib() - before)
"""


def kept_mib(told: str) -> int:
    """What a process keeps that made a hundred large values three times, and dropped them."""
    done = subprocess.run([sys.executable, "-c", KEEPS, told], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_of_large_values_goes_back_to_the_system() -> None:
    """C9: also when something small was made between them."""
    assert kept_mib("told") < 10 < kept_mib("untold")
