r"""Speed of greedy decoding or beam search with a cache, in new tokens per second; rows are decoded to the full length.

    python benchmarks/generate.py                              T5 1.1 small, float32, 8 prompts of 128, 64 new tokens
    python benchmarks/generate.py --dtype=bfloat16
    python benchmarks/generate.py --num_beams=4                beam search; tokens of the best beam count
    python benchmarks/generate.py --model=models/palm_8b --layers=2    any model of gin/models, with fewer layers
    python benchmarks/generate.py --against=transformers       also transformers with torch, in turns

A real decoder, as benchmarks/smollm2.py writes it (HF) and `t5flan convert --from=HF --to=OURS` converts it:

    python benchmarks/generate.py --checkpoint=OURS --huggingface=HF --against=transformers
    python benchmarks/generate.py --checkpoint=OURS --huggingface=HF --against=transformers --inputs=8000 \
        --rows=1 --new_tokens=1 --repeats=2                    a long prompt
    python benchmarks/generate.py --checkpoint=OURS --startup  `t5flan infer`, from the command to eight answers

Besides seconds it prints the processor's seconds (user and system, all threads), which vary less where other work
shares the machine. `--against` needs the `convert` extra (torch, transformers). It alternates the two in one run and
prints the ratio of their medians, and medians of the ratios of neighbouring runs: of seconds (`times_faster`), and of
the processor's seconds (`times_less_cpu`); quote these, since seconds vary with the machine.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import t5flan
from t5flan import configurables
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import generate
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Model

NEVER = -1  # an end of sequence that is never generated


def random_prompts(rows: int, length: int, vocab_size: int) -> np.ndarray:
    """Random token ids [rows, length]."""
    return np.random.default_rng(0).integers(3, vocab_size, (rows, length), dtype=np.int32)


def our_model(args: argparse.Namespace) -> Model:
    """The parameters of `--checkpoint`, or random ones for `--model`."""
    if args.checkpoint:
        return t5flan.load(args.checkpoint, dtype=args.dtype).model
    bindings = [f'ModelConfig.dtype={args.dtype}'] + (
        [f'ModelConfig.num_decoder_layers={args.layers}'] if args.layers else []
    )
    config = configurables.parse([args.model], bindings).read(ModelConfig)
    return jax.jit(lambda key: build_model(config, key))(jax.random.key(0))


def our_run(args: argparse.Namespace) -> Callable[[], int]:
    """Returns a function that decodes once and returns the number of new tokens."""
    model = our_model(args)
    prompts = random_prompts(args.rows, args.inputs, min(model.config.vocab_size, 32000)).tolist()

    decoding = Decoding(max_new_tokens=args.new_tokens, batch_size=args.rows, num_beams=args.num_beams)

    def run() -> int:
        results = generate(model, prompts, decoding, eos_id=NEVER, start_id=None if args.checkpoint else START_TOKEN)
        return sum(len(best.tokens) for best, *_ in results)

    return run


def transformers_model(args: argparse.Namespace) -> Any:
    """The same in transformers, all weights in the dtype: `--huggingface`, or T5 1.1 small with random weights."""
    import torch
    import transformers

    dtype = getattr(torch, args.dtype)
    if args.huggingface:
        return transformers.AutoModelForCausalLM.from_pretrained(args.huggingface, dtype=dtype).eval()
    config = transformers.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=args.layers or 8,
        num_heads=6,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config).eval().to(dtype)


def transformers_run(args: argparse.Namespace) -> Callable[[], int]:
    """`our_run` for transformers, with its cache."""
    import torch

    model, read = transformers_model(args), args.inputs if args.huggingface else 1
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
        return out.shape[0] * (out.shape[1] - read)

    return run


def clocks() -> np.ndarray:
    """Seconds now: the clock's, the processor's in this process, and the processor's in processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return np.array([time.perf_counter(), *(usage.ru_utime + usage.ru_stime for usage in used)])


def startup(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of `t5flan infer` with eight prompts; the first run fills the compilation cache and does not count."""
    prompts = [f'--prompt=What is {i} plus 4?' for i in range(8)]
    flags = [f'--checkpoint={args.checkpoint}', '--chat', f'--max_new_tokens={args.new_tokens}']
    runs = []
    for _ in range(1 + args.repeats):
        start = clocks()
        subprocess.run([sys.executable, '-m', 't5flan', 'infer', *flags, *prompts], check=True, capture_output=True)
        runs.append(clocks() - start)
    wall, _, processor = np.median(runs[1:], axis=0)
    return {'setting': f't5flan infer, 8 answers of {args.new_tokens} tokens', 'median_s': wall, 'cpu_s': processor}


def main() -> None:
    """Prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='models/t5_1_1_small')
    parser.add_argument('--checkpoint', help='a checkpoint folder of a decoder, instead of --model')
    parser.add_argument('--huggingface', help='the same model as a Hugging Face folder, for --against')
    parser.add_argument('--startup', action='store_true', help='time the command `t5flan infer` with --checkpoint')
    parser.add_argument('--layers', type=int, help="number of decoder layers (default: the model's)")
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--inputs', type=int, default=128)
    parser.add_argument('--new_tokens', type=int, default=64)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--num_beams', type=int, default=1, help='width of the beam search; 1 is greedy decoding')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--against', choices=['transformers'])
    args = parser.parse_args()
    if (args.startup or args.huggingface) and not args.checkpoint:
        parser.error('--startup and --huggingface need --checkpoint')
    if args.against and bool(args.checkpoint) != bool(args.huggingface):
        parser.error('--against with --checkpoint needs --huggingface')
    print(json.dumps(startup(args) if args.startup else compare(args)))


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Decodes in turns and returns medians over `--repeats` runs, after a first run that compiles."""
    runs = {'t5flan': our_run(args)} | ({'transformers': transformers_run(args)} if args.against else {})
    start = time.perf_counter()
    tokens = {name: run() for name, run in runs.items()}
    first = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            begun = clocks()
            run()
            wall, used, _ = clocks() - begun
            seconds[name].append(wall)
            processor[name].append(used)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    of_model = args.checkpoint or args.model
    method = 'greedy' if args.num_beams == 1 else f'beam {args.num_beams}'
    result: dict[str, Any] = {
        'setting': f'{of_model} {args.dtype} {method} {args.rows} x {args.inputs} in, {args.new_tokens} new',
        'tokens_per_s': {name: round(tokens[name] / medians[name], 1) for name in runs},
        'median_s': medians,
        'min_s': {name: min(values) for name, values in seconds.items()},
        'median_cpu_s': {name: statistics.median(values) for name, values in processor.items()},
        'first_s': first,
    }
    if args.against:
        result['ratio_of_medians'] = medians['t5flan'] / medians[args.against]
        ratios = [theirs / ours for ours, theirs in zip(seconds['t5flan'], seconds[args.against], strict=True)]
        result['times_faster'] = statistics.median(ratios)
        ratios = [theirs / ours for ours, theirs in zip(processor['t5flan'], processor[args.against], strict=True)]
        result['times_less_cpu'] = statistics.median(ratios)
    return result


if __name__ == '__main__':
    main()
