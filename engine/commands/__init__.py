"""The grammar, and the table of commands by families; pure."""
