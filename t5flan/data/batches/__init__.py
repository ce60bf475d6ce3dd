"""Examples to batches: packing, feature converters, the pipeline."""
