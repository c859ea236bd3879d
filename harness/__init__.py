"""Problems, reference, comparison, relations, records, the pytest plugin and the command line."""
