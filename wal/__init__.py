"""The write-ahead log: frames, segments, manifest. Knows the standard library and msgpack, no trio."""
