"""`python -m jobs.export --config FILE`: the export job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("export", sys.argv[1:]))
