"""`python -m jobs.index --config FILE`: the index job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("index", sys.argv[1:]))
