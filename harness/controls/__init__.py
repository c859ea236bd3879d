"""Controls: implementations broken on purpose, of which each suite must catch its own in every run."""
