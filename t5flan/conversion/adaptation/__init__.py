"""An encoder-decoder from decoders."""
