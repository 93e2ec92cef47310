"""Dumps that somebody made without opsctl: recognised, read to their end, and of them only what may be run."""
