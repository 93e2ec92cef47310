"""How fast opsctl is, and its peers beside it: ``make bench``. See ``docs/benchmarks.md`` for what came of it."""
