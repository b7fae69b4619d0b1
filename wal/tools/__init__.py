"""What looks at a log from outside: verify, dump, repair, backup. The server needs none of it."""
