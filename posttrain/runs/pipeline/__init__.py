"""Pipelines: stages that hand artifacts on. Composed and checked as a whole, run one process a stage, kept by what they are made of."""
