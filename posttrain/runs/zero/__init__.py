"""DeepSpeed's ZeRO: optimizer states, gradients and weights cut into a piece for each rank (arXiv:1910.02054)."""
