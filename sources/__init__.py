"""Data into the lake: the marketplace simulator, public data sets, a user's own files."""
