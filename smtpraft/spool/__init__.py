"""The replicated mail queue: commands, the SQLite state machine, message bodies, and a typed client."""
