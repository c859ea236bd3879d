"""Mutants of the bundled kernels' sources, made mechanically, and which of them the suites see: `samebits mutants`."""
