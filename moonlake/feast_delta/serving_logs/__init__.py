"""Logs of online requests, and their replay."""
