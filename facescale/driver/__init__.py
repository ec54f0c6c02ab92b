"""What the driver process does for each job: plan, name the versions, have the engine map the parts, account for them.

One module a job; facescale.pipeline lists them in data order. Everything here runs once per command, never in a worker.
"""
