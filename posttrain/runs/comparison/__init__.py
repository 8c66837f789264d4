"""`posttrain compare`: which of some finished runs is better, by how much, at what cost, and whether the difference is real."""
