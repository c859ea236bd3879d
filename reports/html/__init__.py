"""The page that people look at: one HTML file of a run, made from its records, which opens without a network."""
