"""`python -m jobs.import --config FILE`: the import job, for `ray job submit`."""

import sys

from facescale.pipeline import job_main

if __name__ == "__main__":
    sys.exit(job_main("import", sys.argv[1:]))
