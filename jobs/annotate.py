"""`python -m jobs.annotate --config FILE`: the annotate job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("annotate", sys.argv[1:]))
