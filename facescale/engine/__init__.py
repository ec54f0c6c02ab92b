"""Map parts through stateful Ray actors: the one primitive under every distributed stage; only it imports ray.

Reading order: worker (what happens to one part), map_parts (who gets which part, and what when a worker dies),
careful (a part that kills its workers), placement (how many workers, with what), session (starting and joining Ray).
"""
