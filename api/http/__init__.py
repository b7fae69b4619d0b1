"""What both ways into HTTP share: the service behind the command paths, access, heads, bodies, sockets."""
