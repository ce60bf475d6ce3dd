"""Model families of Hugging Face: config.json <-> ModelConfig."""
