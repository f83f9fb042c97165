"""Targets: one file per runtime."""
