"""The command line: the only code that knows Typer, Rich, prompts, the clock and exit codes of the process."""
