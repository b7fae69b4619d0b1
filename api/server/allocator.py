"""What the C library's allocator is told at the start, so that memory that was freed goes back to the system.

By itself glibc keeps up to eight heaps for each core, one for each thread that asked, and takes ever larger pieces from
them: in 20 rounds in which 200 clients set a value of 1 MiB and deleted it, a server took 390 to 610 MB, and kept most
of that when it held nothing. With one heap, and large pieces mapped by themselves, it takes 260 and keeps 100.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""Of <malloc.h>."""

MAPPED_BYTES_MIN = 512 * 1024
"""Pieces of this length are mapped by themselves, which costs a fault for each page: a SET of such a value takes a
quarter more CPU. With 128 KiB here, nothing is kept at all, but a GET of 160 KB takes four times the CPU."""


def give_memory_back() -> None:
    """Sets the allocator; another C library than glibc stays as it is."""
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_ARENA_MAX, 1)  # threads share the interpreter's lock anyway
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
