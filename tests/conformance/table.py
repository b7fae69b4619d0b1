"""The contract as one table, from the files of the families."""

from __future__ import annotations

from tests.conformance import test_keys, test_queues, test_server, test_values
from tests.conformance.cases import Case

CASES: dict[str, Case] = {**test_values.CASES, **test_keys.CASES, **test_queues.CASES, **test_server.CASES}
