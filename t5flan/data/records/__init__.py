"""Files and caches to records: one dict per example, read by number."""
