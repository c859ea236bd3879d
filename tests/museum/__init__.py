"""Bugs that real projects shipped, planted again in bundled implementations: `catalogue.py` names them all.

Every other file is for `--load`, and registers its mutants as any third party's backend does.
"""
