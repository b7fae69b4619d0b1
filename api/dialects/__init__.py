"""Bodies become commands and replies become bodies; pure."""
