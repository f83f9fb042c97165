"""Pure functions on arrays: no graph is seen here."""
