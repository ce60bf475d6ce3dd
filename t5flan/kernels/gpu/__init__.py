"""Flash attention with T5's relative bias as Pallas (Triton) kernels for NVIDIA GPUs."""
