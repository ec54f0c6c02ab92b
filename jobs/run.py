"""`python -m jobs.run --config FILE`: the run job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("run", sys.argv[1:]))
