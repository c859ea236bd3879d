"""Processes that can be thrown away: who crashes, hangs or eats all memory in one of them costs nobody else anything.

A `Template` is a process that has imported what is needed and never computes. It is forked into servers, each of which
answers questions over pipes until it is ended, or ends itself: `served` is how the asking process sees one, `forked`
what happens in it. Cells run in such a server (`cell_server`, asked by an `IsolatedSession`).
"""
