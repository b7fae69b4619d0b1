"""What a master says about itself: how full it is, who follows it, what it keeps."""

from __future__ import annotations

import logging
import re
from typing import Any

import trio

from engine.redis.endpoint import Address

KEEPS_UP_S = 2.0
"""A replica that does not have by now what its master had so long ago counts as none: it is stuck, or far behind. One
that is well says every second what it has.
"""

_POLICY = "maxmemory-policy"
_MEMORY = re.compile(rb"^(used_memory|maxmemory):([0-9]+)", re.MULTILINE)

IN_FORCE = ("appendonly", "appendfsync", _POLICY)
"""Settings of a node that decide what it keeps."""

REPLICAS_NEEDED = "min-replicas-to-write"
"""Setting of a node: with fewer replicas it takes no writes."""

SIZE = (b"DBSIZE",)
ROLE = (b"ROLE",)
CONFIG = (b"CONFIG", b"GET", *map(str.encode, (*IN_FORCE, REPLICAS_NEEDED)))
MEMORY = (b"INFO", b"memory")
"""What a master is asked about itself, for `Vitals.learn`."""

_DANGERS = (
    (_POLICY, "noeviction", "may throw keys away when its memory is full"),
    ("appendonly", "yes", "keeps no log of writes on its disk"),
)
"""Settings: the safe value, and what others lead to."""

_logger = logging.getLogger("holdfast.redis")


class Vitals:
    """What is known of a master by its own words.

    Args:
        address: of the node.
        min_replicas: that writes wait for.

    Attributes:
        keys: how many it has.
        replicas: how many are connected to it; None if it does not say.
        following: how many of them keep up, see `KEEPS_UP_S`.
        full: whether it has reached its `maxmemory`, and throws nothing away.
        config: its settings, by the names `IN_FORCE` and `REPLICAS_NEEDED`.
    """

    def __init__(self, address: Address, min_replicas: int) -> None:
        self.keys = 0
        self.replicas: int | None = None
        self.following = 0
        self.full = False
        self.config: dict[str, str] = {}
        self._address = address
        self._min_replicas = min_replicas
        self._lacked = self._was_full = False
        self.start_again()

    def start_again(self) -> None:
        """The connection is a new one, perhaps to a new process, which counts its bytes afresh."""
        self._had, self._has = 0, 0  # bytes of its history: at least `KEEPS_UP_S` ago, and since
        self._has_since_s = trio.current_time()

    def learn(self, size: Any, role: Any, config: Any, memory: Any) -> None:
        """Takes note of what the node says.

        Args:
            size: its answer to `SIZE`; this and the others may be errors, for not everybody may ask everything,
                or None.
            role: to `ROLE`.
            config: to `CONFIG`.
            memory: to `MEMORY`.
        """
        if isinstance(size, int):
            self.keys = size
        self._learn_replicas(role)
        if isinstance(config, dict):
            self._learn_config({name.decode(): value.decode() for name, value in config.items()})
        if isinstance(memory, bytes):
            said = {name: int(number) for name, number in _MEMORY.findall(memory)}
            cap = said.get(b"maxmemory", 0)
            self.full = (
                0 < cap <= said.get(b"used_memory", 0) and self.config.get(_POLICY, "noeviction") == "noeviction"
            )
        self._tell()

    def _learn_replicas(self, role: Any) -> None:
        try:
            offset, replicas_have = _read_role(role)
        except (TypeError, ValueError, LookupError):
            return  # it is not known, or an error, or a replica's: a WAIT will tell
        now_s = trio.current_time()
        if offset < self._has:  # the history is another one: it was a replica meanwhile
            self.start_again()
        if now_s >= self._has_since_s + KEEPS_UP_S:
            self._had, self._has, self._has_since_s = self._has, offset, now_s
        self.replicas = len(replicas_have)
        self.following = sum(has >= self._had for has in replicas_have)

    def _learn_config(self, config: dict[str, str]) -> None:
        before, self.config = self.config, config
        for name, safe, danger in _DANGERS:
            if config.get(name, safe) not in (safe, before.get(name)):
                _logger.warning("redis: %s %s: %s %s", self._address, danger, name, config[name])

    def _tell(self) -> None:
        """Logs the beginning and the end of a state in which writes are refused."""
        if self._lacked != bool(self.lack):
            self._lacked = not self._lacked
            _say(self._lacked, self.lack or f"{self._address} has replicas enough again")
        if self._was_full != self.full:
            self._was_full = self.full
            _say(self.full, f"{self._address} {'has reached its maxmemory' if self.full else 'has room again'}")

    @property
    def abandoned(self) -> str:
        """Why writes would wait in vain for replicas, in words; empty if they would not."""
        if self.replicas is None or self.following >= self._min_replicas:
            return ""
        which = "replicas" if self.following == self.replicas else "replicas that keep up"
        return f"{self._address} has {self.following} {which}, and writes need {self._min_replicas}"

    @property
    def lack(self) -> str:
        """Why it takes no writes although it is up, for us or for anybody, in words; empty if it does."""
        asked = self.config.get(REPLICAS_NEEDED, "0")
        needed = int(asked) if asked.isdigit() else 0
        if self.abandoned or self.replicas is None or self.replicas >= needed:
            return self.abandoned
        return f"{self._address} has {self.replicas} replicas, and writes need {needed}"


def _say(bad: bool, what: str) -> None:
    _logger.log(logging.WARNING if bad else logging.INFO, "redis: %s", what)


def _read_role(role: Any) -> tuple[int, list[int]]:
    """What the answer of a master to ROLE says: how many bytes it has, and how many each of its replicas."""
    kind, offset, replicas = role
    if kind != b"master":
        raise ValueError(kind)
    return int(offset), [int(has) for _host, _port, has in replicas]
