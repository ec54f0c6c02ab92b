"""A synthetic crawl with planted noise and known truth, and the score of a lake made from it."""
