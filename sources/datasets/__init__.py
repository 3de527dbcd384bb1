"""Public data sets as sources."""
