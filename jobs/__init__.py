"""Shims for `ray job submit … -- python -m jobs.NAME`: parse, then facescale.pipeline.run_job."""
