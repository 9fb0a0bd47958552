"""Statistics of a study: estimates, comparisons, and whether a setting may be called the best."""
