"""`python -m jobs.cluster --config FILE`: the cluster job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("cluster", sys.argv[1:]))
