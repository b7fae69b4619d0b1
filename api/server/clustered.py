"""The engine on Redis, put together: this process is a front, and keeps nothing itself."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from api.server.settings import ServerSettings, StartError
from engine.collector import Collector
from engine.redis.endpoint import Endpoint
from engine.replies import Failure

if TYPE_CHECKING:
    from engine.redis.engine import ClusterEngine

_UNSAID = ("min_replicas", "status")
"""Members of readiness that the start line says in other words."""

_logger = logging.getLogger("holdfast.server")


@asynccontextmanager
async def clustered(
    settings: ServerSettings,
    run: Callable[[ClusterEngine], Awaitable[None]],
    interrupting: Callable[[], AbstractContextManager[None]],
) -> AsyncIterator[tuple[ClusterEngine, str]]:
    """Connects to Redis and runs an engine on it.

    Args:
        settings: where Redis is, limits, how many replicas must have a write.
        run: has the engine run in the background, and returns when it does; it must have ended in the end.
        interrupting: makes a `with` block in which connecting may be given up.

    Yields:
        The engine, and words for the start line.

    Raises:
        StartError: the library for it is not installed.
        ClusterError: there is no Redis that will do.
        Interrupted: connecting was given up.
    """
    assert settings.engine is not None
    engine = _engine_class()(settings.engine, settings.limits, min_replicas=settings.min_replicas)
    with interrupting():
        await run(engine)
    with Collector(lambda: 0):  # else what was imported, 85,000 objects, is looked at again and again
        yield engine, _describe(settings.engine, engine.readiness(), settings.min_replicas)
    _logger.info("stopped; the data is in Redis")


def _engine_class() -> type[ClusterEngine]:
    """Imports it when it is needed: its library takes 0.2 s, and need not be installed for the embedded engine."""
    try:
        from engine.redis.engine import ClusterEngine
    except ModuleNotFoundError as error:
        if error.name != "coredis":
            raise
        raise StartError(
            "--engine needs the library coredis: run pip install '.[cluster]' in the source directory of Holdfast"
        ) from None
    return ClusterEngine


def _describe(endpoint: Endpoint, found: Failure | dict[str, str | int], min_replicas: int) -> str:
    """Says where the keys are, and what was found there."""
    if isinstance(found, Failure):
        about = found.detail or found.error.value
    else:
        about = ", ".join(_member(name, value) for name, value in found.items() if name not in _UNSAID)
    replicas = {0: "no replica", 1: "1 replica"}.get(min_replicas, f"{min_replicas} replicas")
    return f"keys on {endpoint} ({about}), answers wait for {replicas}"


def _member(name: str, value: str | int) -> str:
    if name in ("engine", "detail"):
        return str(value)
    if name == "masters":
        return "1 master" if value == 1 else f"{value} masters"
    return f"{name} {value}"
