"""Where images come from: folders, WebDataset tars and Parquet files, local or over fsspec.

plan.py freezes what there is into the lake's `sources` table; read.py gives a part's bytes back; labels.py gives
the claims that folders, files and tar members make about images.
"""
