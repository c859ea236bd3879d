"""The backends, one file each, and the contract they keep."""
