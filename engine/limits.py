"""Every limit of the product, in one place: each is named, has a default and can be set.

Units stand last in the names. The command line makes one option of each field.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; what goes beyond is refused with an error and changes nothing.

    Attributes:
        key_bytes_max: length of a key.
        value_bytes_max: length of a value.
        body_bytes_max: length of a request body.
        bodies_bytes_max: request bodies held in memory at once, over all connections.
        tokens_max: words of one command, its name included.
        json_depth_max: nesting of a request body.
        waiters_max: blocked pops parked at once.
        mailbox_max: commands that wait for the actor at once.
        memory_bytes_max: estimated memory of keys and values; None is no cap.
        batch_commands_max: commands of one pipeline.
        unit_commands_max: commands of one atomic unit.
        answer_bytes_max: values that one batch reads, or pops.
    """

    key_bytes_max: int = 4 * KIB
    value_bytes_max: int = 1 * MIB
    body_bytes_max: int = 16 * MIB
    bodies_bytes_max: int = 256 * MIB
    tokens_max: int = 65_536
    json_depth_max: int = 64
    waiters_max: int = 100_000
    mailbox_max: int = 16_384
    memory_bytes_max: int | None = None
    batch_commands_max: int = 65_536
    unit_commands_max: int = 1_000
    answer_bytes_max: int = 16 * MIB
