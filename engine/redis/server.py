"""Commands on no key: nothing is asked of Redis."""

from __future__ import annotations

from engine.calls import Command
from engine.commands.server import Ping
from engine.redis.translation import Local, Translation
from engine.replies import PONG

TRANSLATIONS: dict[type[Command], Translation] = {Ping: Local(lambda _command: PONG)}
