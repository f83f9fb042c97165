"""Measurement: every claim of speed or accuracy comes from here."""
