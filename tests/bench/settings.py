"""What the servers say about when their data is on disk, so that the report shows it rather than claims it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx

from tests.bench.measure import FAILURES, reason
from tests.bench.peers import Redis, holdfast


def durable_settings(directory: Path) -> list[str]:
    """Starts those that can be asked and asks them; lines of Markdown."""
    return [
        f"Redis, also behind Webdis: {told(redis_says, directory)}.",
        "beanstalkd: `-b DIR -f0`, each record synced before the answer. The Go map: nothing on disk.",
        f"Holdfast: {told(holdfast_says, directory)}.",
    ]


def told(ask: Callable[[Path], str], directory: Path) -> str:
    """What a server says, or why it does not."""
    try:
        return ask(directory)
    except FAILURES as error:
        return f"not known: {reason(error)}"


def redis_says(directory: Path) -> str:
    """Its settings in force."""
    with Redis(directory / "asked-redis") as redis:
        asked = {name: redis.ask("CONFIG", "GET", name).split()[-1].decode() for name in ("appendonly", "appendfsync")}
    return ", ".join(f"`{name} {value}`" for name, value in asked.items())


def holdfast_says(directory: Path) -> str:
    """Its policy in force."""
    with holdfast(directory / "asked-holdfast") as server:
        policy = httpx.get(server.url + "/readyz", timeout=30, trust_env=False).json()["fsync"]
    return f"`--fsync {policy}`, as it is by itself"
