"""Compaction, vacuum, erasure and data docs."""
