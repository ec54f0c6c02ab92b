"""The public Python API: the jobs as functions, and Lake, what a program reads. `import facescale` offers all of it.

    jobs      run, extract, embed, dedup, neighbors, cluster, clean, build_index: what the commands of these names do
    questions search, calibrate, evaluate_clusters, evaluate_cleaning: jobs with answers of their own kind
    lake      Lake: versions, tables as Arrow and as numpy, verify

The package's __init__ loads these modules when a name of theirs is first used. Nothing in facescale imports them.
"""
