"""LLM post-training experiments: one line trains, one line sweeps, one line says which method won."""

__version__ = "0.1.0"
