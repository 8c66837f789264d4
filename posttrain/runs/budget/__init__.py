"""Runs that stop at an amount of work."""
