"""Converters: one file per source framework."""
