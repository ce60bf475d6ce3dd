"""Text -> batches: sources, vocabularies, features, packing, pipeline."""
