"""Tables, comparisons and baselines, made from records alone."""
