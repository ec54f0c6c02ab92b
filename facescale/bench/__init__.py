"""`facescale bench`: side-by-side measurements a user can rerun; never part of the tests, since machines are noisy."""
