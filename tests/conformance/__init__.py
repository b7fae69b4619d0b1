"""One suite for both engines: whoever changes `--engine` keeps their clients (docs/testing.md)."""
