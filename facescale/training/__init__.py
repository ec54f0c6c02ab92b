"""Training sets out of clean lakes; what trains on them comes later. Imports without ray, pydantic and faiss."""
