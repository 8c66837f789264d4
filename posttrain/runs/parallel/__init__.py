"""Runs of a sweep at the same time on one machine."""
