"""Data sets, one per file; file, class and command-line value have the same name."""
