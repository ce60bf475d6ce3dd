"""Results in, tables and HTML pages out."""
