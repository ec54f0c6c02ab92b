"""`python -m jobs.neighbors --config FILE`: the neighbors job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("neighbors", sys.argv[1:]))
