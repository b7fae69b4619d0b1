"""The drill: bugs planted on purpose, which the simulator has to find. See `bugs.py`, and docs/testing.md."""
