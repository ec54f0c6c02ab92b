"""Model cards and weights: which files facescale runs, where they lie, and what they want to be fed."""
