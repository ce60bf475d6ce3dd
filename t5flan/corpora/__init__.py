"""Jobs over whole corpora: deduplication and offline caching."""
