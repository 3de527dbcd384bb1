"""Rules that all online stores keep."""
