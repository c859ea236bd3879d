"""Why two runs of one request differ: in which order each of them adds up."""
