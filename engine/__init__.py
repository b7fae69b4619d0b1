"""The embedded engine: commands, the state machine, waiters and the actor that owns them."""
