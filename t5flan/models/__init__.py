"""Models: batch -> hidden states -> logits; one Transformer stack, many models by configuration."""
