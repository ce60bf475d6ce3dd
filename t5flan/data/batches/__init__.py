"""Examples -> batches: streams, packing, feature converters and the pipeline."""
