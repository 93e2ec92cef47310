"""What leaves opsctl besides its result: logs, error reports; and the redactor every one of them ends in."""
