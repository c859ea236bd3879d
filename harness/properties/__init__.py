"""The properties suite: every relation on whole batches that Hypothesis draws, and makes smaller where they fail."""
