"""The write-ahead log: frames, segments, manifest, snapshots. Knows the standard library and msgpack, no trio."""
