"""Commands that touch no key, on both engines."""

from __future__ import annotations

from engine.replies import Value
from tests.conformance.cases import AS_IT_WAS, KINDS, Case

CASES: dict[str, Case] = {
    "PING": dict.fromkeys(KINDS, (Value(b"PONG"), AS_IT_WAS)),
}
