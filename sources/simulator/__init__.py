"""The seeded marketplace simulator."""
