"""Many videos that differ in one or two settings: axes, runs, results, and the search for a sparsity."""
