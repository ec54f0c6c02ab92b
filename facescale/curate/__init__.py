"""Curation on embeddings: duplicates, neighbors, clusters, cleaning, and the calibration of their thresholds."""
