"""`posttrain human-eval make` and `score`: sheets out of runs, and a report out of filled sheets."""
