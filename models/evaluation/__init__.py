"""Measurements of encoders and click models."""
