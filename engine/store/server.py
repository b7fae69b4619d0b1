"""What touches no key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.calls import Command
from engine.commands.server import Ping
from engine.replies import PONG
from engine.store.store import Decision, Store


def _ping(_store: Store, _command: Ping, _now_ms: int) -> Decision:
    return (), PONG


DECIDE: dict[type[Command], Callable[[Store, Any, int], Decision]] = {Ping: _ping}
