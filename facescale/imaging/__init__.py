"""Bytes of an image file to pixels, safely, and the two hashes of an image.

`decode` is for code that receives files from strangers: it never raises and never prints; what is
wrong with an image becomes a status. Called by facescale.vision and facescale.bench.
"""
