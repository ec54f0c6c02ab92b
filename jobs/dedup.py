"""`python -m jobs.dedup --config FILE`: the dedup job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("dedup", sys.argv[1:]))
