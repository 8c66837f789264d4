"""Studies: arms times seeds under one budget, and what decides between them."""
