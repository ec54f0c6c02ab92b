"""`python -m jobs.embed --config FILE`: the embed job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("embed", sys.argv[1:]))
