"""`facescale bench`: side-by-side measurements that a user can rerun on photographs of their own.

Reading order: cli (the commands), then one module a command: oracle, speed, peers, gpu, verification, memory. Their
pure arithmetic is in metrics; dlib_oracle and the modules called loop are what facescale is held against.
"""
