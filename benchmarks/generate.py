"""Speed of greedy decoding or beam search with a cache, in new tokens per second; rows are decoded to the full length.

    python benchmarks/generate.py                              T5 1.1 small, float32, 8 prompts of 128, 64 new tokens
    python benchmarks/generate.py --dtype=bfloat16
    python benchmarks/generate.py --num_beams=4                beam search; tokens of the best beam count
    python benchmarks/generate.py --model=models/palm_8b --layers=2    any model of gin/models, with fewer layers
    python benchmarks/generate.py --against=transformers       also transformers with torch, in turns

`--against` needs the `convert` extra (torch, transformers). It alternates the two in one run and prints the ratio of
their medians, and the median of the ratios of neighbouring runs; quote the latter, since seconds vary with the machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from t5flan import configurables
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import generate
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig

NEVER = -1  # an end of sequence that is never generated


def random_prompts(rows: int, length: int, vocab_size: int) -> np.ndarray:
    """Random token ids [rows, length]."""
    return np.random.default_rng(0).integers(3, vocab_size, (rows, length), dtype=np.int32)


def our_run(args: argparse.Namespace) -> Callable[[], int]:
    """Returns a function that decodes once and returns the number of new tokens."""
    bindings = [f'ModelConfig.dtype={args.dtype}'] + (
        [f'ModelConfig.num_decoder_layers={args.layers}'] if args.layers else []
    )
    config = configurables.parse([args.model], bindings).read(ModelConfig)
    model = jax.jit(lambda key: build_model(config, key))(jax.random.key(0))
    prompts = random_prompts(args.rows, args.inputs, min(config.vocab_size, 32000))

    decoding = Decoding(max_new_tokens=args.new_tokens, batch_size=args.rows, num_beams=args.num_beams)

    def run() -> int:
        results = generate(model, prompts, decoding, eos_id=NEVER)
        return sum(len(best.tokens) for best, *_ in results)

    return run


def transformers_run(args: argparse.Namespace) -> Callable[[], int]:
    """The same for T5 1.1 small in transformers (all weights in the dtype), with its cache."""
    import torch
    import transformers

    config = transformers.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config).eval().to(getattr(torch, args.dtype))
    prompts = torch.tensor(random_prompts(args.rows, args.inputs, 32000), dtype=torch.long)

    def run() -> int:
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                num_beams=args.num_beams,
                use_cache=True,
                min_new_tokens=args.new_tokens,
                max_new_tokens=args.new_tokens,
            )
        return out.shape[0] * (out.shape[1] - 1)

    return run


def main() -> None:
    """Prints one line of JSON: medians over `--repeats` runs, after a first run that compiles."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='models/t5_1_1_small')
    parser.add_argument('--layers', type=int, help="number of decoder layers (default: the model's)")
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--inputs', type=int, default=128)
    parser.add_argument('--new_tokens', type=int, default=64)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--num_beams', type=int, default=1, help='width of the beam search; 1 is greedy decoding')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--against', choices=['transformers'])
    args = parser.parse_args()
    runs = {'t5flan': our_run(args)} | ({'transformers': transformers_run(args)} if args.against else {})
    start = time.perf_counter()
    tokens = {name: run() for name, run in runs.items()}
    first = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    method = 'greedy' if args.num_beams == 1 else f'beam {args.num_beams}'
    result = {
        'setting': f'{args.model} {args.dtype} {method} {args.rows} x {args.inputs} in, {args.new_tokens} new',
        'tokens_per_s': {name: round(tokens[name] / medians[name], 1) for name in runs},
        'median_s': medians,
        'min_s': {name: min(values) for name, values in seconds.items()},
        'first_s': first,
    }
    if args.against:
        result['ratio_of_medians'] = medians['t5flan'] / medians[args.against]
        ratios = [theirs / ours for ours, theirs in zip(seconds['t5flan'], seconds[args.against], strict=True)]
        result['times_faster'] = statistics.median(ratios)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
