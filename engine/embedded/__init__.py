"""The engine in this process: the actor, and all that runs beside it."""
