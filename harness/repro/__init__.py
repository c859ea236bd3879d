"""One comparison as one line: told in text, read back exactly, and run again without pytest."""
