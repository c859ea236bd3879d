"""Bugs that real projects shipped, planted again, and what the suites see of them: `samebits museum`."""
