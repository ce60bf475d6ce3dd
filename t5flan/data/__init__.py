"""Text -> batches: records, vocabularies, preprocessing, prompts, mixtures and the pipeline."""
