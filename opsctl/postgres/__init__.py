"""Everything that speaks to PostgreSQL: its programs, a throwaway server, connections."""
