"""What users run: one test per cell of the matrix."""
