"""`python -m jobs.extract --config FILE`: the extract job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("extract", sys.argv[1:]))
