"""The simulator: the whole engine and its clients under one seed. See `run.py`, and docs/testing.md."""
