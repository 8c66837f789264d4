"""`-m hydra/sweeper=optuna`: a sweep that searches."""
