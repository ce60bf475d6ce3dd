"""Writes tests/conversion/golden: tiny models of each family by transformers, and its results for a batch.

    pip install -e '.[convert]' && python tests/conversion/make_golden.py

The files in the tree were made with transformers 5.23.0 (from `llama3` on: 5.24.0) and torch 2.13.0. Run it again only
when a family is added, with its name: the numbers are random but seeded, and other versions may draw different ones.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

GOLDEN = Path(__file__).parent / 'golden'
VOCAB, BATCH, SOURCE, TARGET, NEW = 64, 3, 10, 7, 8
T5 = dict(
    vocab_size=VOCAB,
    d_model=16,
    d_kv=4,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=3,
    dropout_rate=0.0,
    decoder_start_token_id=0,
    relative_attention_num_buckets=8,
)
DECODER = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    head_dim=4,
    max_position_embeddings=64,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
)
FAMILIES = {
    't5_1_0': (transformers.T5Config(**T5, feed_forward_proj='relu'), 'float32'),
    't5_1_1': (transformers.T5Config(**T5, feed_forward_proj='gated-gelu', tie_word_embeddings=False), 'float32'),
    'mt5': (transformers.MT5Config(**T5), 'bfloat16'),
    'umt5': (transformers.UMT5Config(**T5), 'float32'),
    'byt5': (
        transformers.T5Config(
            **{**T5, 'num_layers': 3, 'num_decoder_layers': 1},
            feed_forward_proj='gated-gelu',
            tie_word_embeddings=False,
        ),
        'float16',
    ),
    'ul2': (
        transformers.T5Config(**{**T5, 'd_kv': 8}, feed_forward_proj='gated-silu', tie_word_embeddings=False),
        'float32',
    ),
    'llama': (transformers.LlamaConfig(**DECODER, num_key_value_heads=2, tie_word_embeddings=False), 'float32'),
    'gemma': (transformers.GemmaConfig(**DECODER, num_key_value_heads=1), 'bfloat16'),
    'llama3': (
        transformers.LlamaConfig(
            **DECODER,
            num_key_value_heads=2,
            attention_bias=True,
            rope_parameters={
                'rope_type': 'llama3',
                'rope_theta': 30.0,
                'factor': 4.0,
                'low_freq_factor': 1.0,
                'high_freq_factor': 4.0,
                'original_max_position_embeddings': 16,
            },
        ),
        'float32',
    ),
    'mistral': (transformers.MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=4), 'bfloat16'),
    'smollm3': (
        transformers.SmolLM3Config(
            **{**DECODER, 'num_hidden_layers': 3},
            num_key_value_heads=4,
            no_rope_layer_interval=2,
            use_sliding_window=True,
            sliding_window=5,
        ),
        'float32',
    ),
    'qwen3_yarn': (
        transformers.Qwen3Config(
            **{**DECODER, 'num_hidden_layers': 3},
            num_key_value_heads=2,
            use_sliding_window=True,
            sliding_window=3,
            max_window_layers=1,
            rope_parameters={
                'rope_type': 'yarn',
                'rope_theta': 50.0,
                'factor': 4.0,
                'original_max_position_embeddings': 16,
                'beta_fast': 4.0,
            },
        ),
        'float32',
    ),
    'gemma3_linear': (
        transformers.Gemma3TextConfig(
            **{**DECODER, 'num_hidden_layers': 5},
            num_key_value_heads=1,
            query_pre_attn_scalar=4,
            sliding_window=3,
            layer_types=[('full' if i % 2 else 'sliding') + '_attention' for i in range(5)],
            rope_parameters={
                'sliding_attention': {'rope_type': 'default', 'rope_theta': 20.0},
                'full_attention': {'rope_type': 'linear', 'rope_theta': 300.0, 'factor': 8.0},
            },
        ),
        'float32',
    ),
}
PART = dict(
    **{**DECODER, 'num_hidden_layers': 3},
    num_key_value_heads=2,
    query_pre_attn_scalar=7,
    layer_types=['sliding_attention', 'full_attention', 'sliding_attention'],
)
FAMILIES['t5gemma2'] = (
    transformers.T5Gemma2Config(
        encoder={
            'text_config': PART | {'sliding_window': 6},  # three tokens after a token, two before it
            'vision_config': dict(
                model_type='siglip_vision_model',
                hidden_size=8,
                intermediate_size=8,
                num_hidden_layers=1,
                num_attention_heads=1,
                image_size=16,
                patch_size=8,
            ),
            'eoi_token_index': 11,
            'mm_tokens_per_image': 4,
        },
        decoder=PART | {'sliding_window': 3, 'final_logit_softcapping': 6.0},
        attn_implementation='eager',
    ),
    'float32',
)
DECODERS = ('llama', 'gemma', 'gemma3_text', 'mistral', 'smollm3', 'qwen3')
TIED = ('t5_1_0', 't5gemma2')


def make(family: str) -> None:
    """One folder: config.json, safetensors (ByT5's in shards) and expected.npz."""
    config, dtype = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    decoder = config.model_type in DECODERS
    model = (
        (transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSeq2SeqLM)
        .from_config(config)
        .eval()
    )
    with torch.no_grad():
        for parameter in model.parameters():  # far from their initial values, so that nothing is small by chance
            parameter.copy_(
                torch.randn_like(parameter) * (0.3 if parameter.ndim > 1 else 0.2)
                + (parameter.ndim == 1) * ('gemma' not in config.model_type)
            )
            parameter.copy_(parameter.to(getattr(torch, dtype)).float())
        if family not in TIED and not decoder:  # transformers ties them by default, these families do not
            model.lm_head.weight = torch.nn.Parameter((torch.randn(VOCAB, 16) * 0.3).to(getattr(torch, dtype)).float())
    folder = GOLDEN / family
    shutil.rmtree(folder, ignore_errors=True)
    expected = record(model, decoder, family)
    if family not in TIED and not decoder:
        model.config.tie_word_embeddings = False
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size='12KB' if family == 'byt5' else '5GB')
    (folder / 'generation_config.json').unlink(missing_ok=True)
    np.savez_compressed(folder / 'expected.npz', **expected)


def record(model: torch.nn.Module, decoder: bool, family: str) -> dict[str, np.ndarray]:
    """A batch, its float32 logits, mean loss, gradient norms by parameter, and greedy continuations."""
    rng = np.random.default_rng(1)
    source = rng.integers(3, VOCAB, (BATCH, SOURCE))
    labels = rng.integers(3, VOCAB, (BATCH, TARGET))
    mask = np.ones_like(source)
    if decoder:
        inputs = torch.tensor(source)
        out = model(input_ids=inputs)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), inputs[:, 1:].flatten())
        greedy = model.generate(inputs, max_new_tokens=NEW, do_sample=False, attention_mask=torch.ones_like(inputs))[
            :, SOURCE:
        ]
        arrays = {'input_ids': source}
        logits = out.logits
    else:
        source[1, 6:], mask[1, 6:] = 0, 0
        start = 2 if family == 't5gemma2' else 0
        decoder_inputs = np.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        if family == 't5gemma2':  # the word that has an embedding of its own
            source[0, 3] = decoder_inputs[2, 4] = 11
        inputs, attention = torch.tensor(source), torch.tensor(mask)
        logits = model(
            input_ids=inputs, attention_mask=attention, decoder_input_ids=torch.tensor(decoder_inputs)
        ).logits
        if family == 'umt5':
            # transformers 5 scales the logits although they are not tied; T5X and transformers 4.57 do not.
            logits = logits * 16**0.5
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(labels).flatten())
        greedy = model.generate(inputs, attention_mask=attention, max_new_tokens=NEW, do_sample=False)[:, 1:]
        arrays = {'input_ids': source, 'labels': labels, 'decoder_input_ids': decoder_inputs}
    loss.backward()
    norms = {
        name.replace('.text_model.', '.'): float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None  # of the text model
    }
    return arrays | {
        'logits': logits.detach().numpy(),
        'loss': np.float32(loss.item()),
        'greedy': greedy.numpy(),
        'grad_norms': np.array(json.dumps(norms)),
    }


if __name__ == '__main__':
    for name in sys.argv[1:] or FAMILIES:
        make(name)
        print(name, sum(file.stat().st_size for file in (GOLDEN / name).iterdir()), 'bytes')
