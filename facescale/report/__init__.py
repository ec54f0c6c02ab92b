"""One HTML page about a lake: counts, histograms with their thresholds, contact sheets of what was found."""
