"""Nearest-neighbor indexes over the embeddings of a lake: plan, train, build, measure, search.

Reading order: plan (which index; pure), build (which parts go into which shard), stages (train, encode), finish
(measure recall, tune, write the manifest), search (ask it), results (join hits with faces, images and labels).
faiss and hnswlib (backends) and torch (exact) are imported when first used.
"""
