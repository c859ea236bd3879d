"""The harness tested: what it must see, what it must refuse, and how it says so."""
