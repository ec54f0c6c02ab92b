"""`python -m jobs.report --config FILE`: the report job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("report", sys.argv[1:]))
