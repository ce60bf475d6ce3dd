"""GGUF files, the format of llama.cpp, read as a Hugging Face folder: config, arrays and tokenizer files."""
