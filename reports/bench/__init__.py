"""The page of a benchmark, made from its records alone."""
