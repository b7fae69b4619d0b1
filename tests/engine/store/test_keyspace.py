from __future__ import annotations

import random

from engine.store.keyspace import SHARDS, Keyspace


def test_it_behaves_like_a_dict() -> None:
    rng = random.Random(1)
    keyspace: Keyspace[int] = Keyspace()
    twin: dict[bytes, int] = {}
    for step in range(5_000):
        key = b"%d" % rng.randrange(500)
        if rng.random() < 0.4:
            assert keyspace.pop(key) == twin.pop(key, None)
        else:
            keyspace[key] = twin[key] = step
        assert keyspace.get(key) == twin.get(key)
    assert dict(keyspace.items()) == twin
    assert sorted(keyspace) == sorted(twin)


def test_the_shards_fill_evenly() -> None:
    keyspace: Keyspace[bool] = Keyspace()
    for number in range(20 * SHARDS):
        keyspace[b"key:%d" % number] = True
    assert max(map(len, keyspace.shards)) < 60
