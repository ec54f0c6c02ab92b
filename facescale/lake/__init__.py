"""The lake: every table facescale reads or writes, under one root URI (local path, s3://, gs://, memory://).

Reading order: ids (what a number means) → schema (what a table holds) → fingerprint (what names a version) →
store (the only code that touches storage) → parts (the unit of commit) → lake (lake.yaml and versions) →
scan (reading) → verify (checking). Stages import from these modules; nothing here imports back up.
"""
