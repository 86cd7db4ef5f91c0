"""Measurements behind the numbers in the README; run as modules from the repository's root (see README.md)."""
