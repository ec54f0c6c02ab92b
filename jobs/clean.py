"""`python -m jobs.clean --config FILE`: the clean job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("clean", sys.argv[1:]))
