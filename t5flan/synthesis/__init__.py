"""Training data made by a model: sampled rationales."""
