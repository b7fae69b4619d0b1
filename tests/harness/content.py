"""The bytes of a file on the fake disk: as readers see them, as they are on the platter, and what lies in between."""

from __future__ import annotations

import random
from collections.abc import Iterator

SECTOR_BYTES = 512


class Image:
    """Bytes of a file; zeros at its end need not be there, so that allocating costs nothing."""

    def __init__(self, data: bytes = b"", length: int = 0) -> None:
        self.data = bytearray(data)
        self.length = max(length, len(data))

    def write(self, offset: int, data: bytes) -> None:
        """Writes over what stands at `offset`, and beyond the end."""
        if offset > len(self.data):
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data
        self.length = max(self.length, offset + len(data))

    def resize(self, length: int) -> None:
        """Cuts the file, or lets it grow with zeros."""
        del self.data[length:]
        self.length = length

    def read(self, offset: int = 0, count: int | None = None) -> bytes:
        """What a reader sees."""
        end = self.length if count is None else min(self.length, offset + count)
        return bytes(self.data[offset:end]).ljust(max(0, end - offset), b"\0")

    def copy(self) -> Image:
        """The same bytes once more."""
        return Image(bytes(self.data), self.length)


Change = tuple[int, bytes | None]
"""(offset, what was written there), or (new length, None)."""


class Content:
    """The bytes of a file: as readers see them, as they are on disk, and what changed since the last sync."""

    def __init__(self, image: Image | None = None) -> None:
        self.seen = Image() if image is None else image.copy()
        self.durable = self.seen.copy()
        self._unsynced: list[Change] = []

    def write(self, offset: int, data: bytes) -> None:
        """Writes over what stands at `offset`, and beyond the end."""
        self.seen.write(offset, data)
        self._unsynced.append((offset, bytes(data)))

    def resize(self, length: int) -> None:
        """Cuts the file, or lets it grow with zeros."""
        self.seen.resize(length)
        self._unsynced.append((length, None))

    def sync(self) -> None:
        """Brings what changed to the disk; what an earlier failed sync dropped is a hole of zeros or of old bytes."""
        for at, data in self._unsynced:
            if data is not None:
                self.durable.write(at, data)
            else:
                self.durable.resize(at)
        self.durable.resize(self.seen.length)
        self._unsynced.clear()

    def fail_to_sync(self, torn: random.Random | None) -> None:
        """Takes everything for clean, and nothing is on disk, or with `torn` any part of it."""
        if torn is not None:
            self._bring_some(torn)
        self._unsynced.clear()

    def lose(self, torn: random.Random | None) -> None:
        """Drops what was not synced, or with `torn` all but a random part of it."""
        if torn is not None and self._unsynced:
            self._bring_some(torn)
        self._unsynced.clear()
        self.seen = self.durable.copy()

    def _bring_some(self, chance: random.Random) -> None:
        """Brings any of the unsynced sectors to the disk, each as it was after some of the writes to it."""
        lengths = self._lengths()
        length = chance.choice((lengths[0], lengths[-1], lengths[-1], chance.choice(lengths)))
        share = chance.choice((0.0, 0.5, 0.9, 1.0))
        kept: dict[int, bool] = {}
        for offset, data in self._unsynced:
            if data is None:
                continue
            for start, end in _sectors(offset, offset + len(data)):
                sector = start // SECTOR_BYTES
                if kept.get(sector, True):  # the first write that does not arrive is the last one of this sector
                    kept[sector] = chance.random() < share
                if kept[sector]:
                    self._bring(start, data[start - offset : end - offset], chance)
        self.durable.resize(length)

    def _bring(self, offset: int, data: bytes, chance: random.Random) -> None:
        """Brings the bytes of one sector to the disk, now and then garbled, where there is nothing to lose."""
        if chance.random() < 0.02 and not self.durable.data[offset : offset + len(data)].strip(b"\0"):
            data = _garbled(data, chance)
        self.durable.write(offset, data)

    def _lengths(self) -> list[int]:
        """The lengths the file has had since the last sync, the one on disk first."""
        lengths = [self.durable.length]
        for at, data in self._unsynced:
            lengths.append(at if data is None else max(lengths[-1], at + len(data)))
        return lengths


def _sectors(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Cuts a range of bytes at the bounds of sectors."""
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        yield start, stop
        start = stop


def _garbled(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with one bit flipped, or noise."""
    if chance.random() < 0.5:
        return chance.randbytes(len(data))
    flipped = bytearray(data)
    flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(flipped)
