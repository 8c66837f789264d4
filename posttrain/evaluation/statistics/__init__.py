"""Statistics of comparisons between trained models: few seeds, many examples. Pure functions of arrays; leading dimensions are studies."""
