"""Measures of clusters and of cleaning against a known truth; the split of identities into fit and report."""
