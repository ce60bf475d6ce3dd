"""Flash attention with T5's relative bias as Pallas (Mosaic) kernels for TPUs."""
