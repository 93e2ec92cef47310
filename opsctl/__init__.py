"""opsctl: PostgreSQL backups that are proven, restores that can be undone, incidents that record themselves."""

__version__ = "0.1.0"
