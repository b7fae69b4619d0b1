"""How much is drawn by lot: `HOLDFAST_TESTS=brief` takes a fifth of the seeds, kills, examples and repetitions.

Everything is tested all the same; only what tests do over and over with other numbers they do less often. Without the
setting, or with `full`, they do all of it.
"""

from __future__ import annotations

import os

SHARES = {"full": 1, "brief": 5}
"""What counts are divided by."""

_DIVISOR = SHARES[os.environ.get("HOLDFAST_TESTS") or "full"]


def many(count: int) -> int:
    """So many, in a brief run a fifth of it; at least one."""
    return max(1, count // _DIVISOR)
