"""facescale: from a crawl of web images to a clean, searchable face data set.

Importing this package is cheap: torch, ray and faiss are loaded by the functions that need them.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
