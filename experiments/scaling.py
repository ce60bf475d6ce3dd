"""Trains a sweep of small decoders of several sizes with several budgets, for `t5flan plan --fit`.

    python experiments/scaling.py --workdir=runs/scaling --text='books/*.txt' --held_out=book.txt

Every size is trained with every budget of FLOPs, counted as in `training/throughput.py`, so the tokens follow from
both: the runs of a budget lie on a parabola, and sizes and tokens vary apart. As in Chinchilla (arXiv:2203.15556), the
rate decays to a tenth over the tokens of each run. The models are Llama's decoder on bytes, or on --vocabulary.

`--dry_run` lists the runs. A stopped sweep continues when started again. Every training is a t5flan command, which is
printed first; the last command fits the laws and draws them.
"""

import argparse
import math
import time
from pathlib import Path

from t5flan.configurables import parse
from t5flan.models.config import ModelConfig
from t5flan.planning.cost import Batch, count_parameters, flops_per_token

from runs import is_trained, run

SIZES = '32x2,48x2,64x3,96x3,128x4,192x4'
BUDGETS = '3e11,1e12,3e12,1e13'
ROWS, LENGTH = 16, 128
FEWEST_STEPS = 40
"""Runs with fewer steps are left out: they are all warm-up."""

MODEL = """
include 'models/tiny_decoder.gin'
include 'runs/pretrain_files.gin'
ModelConfig.vocab_size = {vocab_size}
ModelConfig.emb_dim = {emb_dim}
ModelConfig.num_heads = {heads}
ModelConfig.num_kv_heads = {heads}
ModelConfig.mlp_dim = {mlp_dim}
ModelConfig.num_decoder_layers = {layers}
ModelConfig.tie_embeddings = True
"""
RUN = """
VOCABULARY = '{vocabulary}'
TEXT_FILES = '{text}'
TextFiles.validation = '{held_out}'
MIXTURE = 'files_causal_lm'
DataConfig.format = 'causal_lm'
FEATURE_LENGTHS = {{'targets': {length}}}
BATCH_SIZE = {rows}
STEPS = {steps}
OptimizerConfig.schedule = 'linear'
OptimizerConfig.learning_rate = {rate}
OptimizerConfig.final_ratio = 0.1
OptimizerConfig.warmup_steps = {warmup}
CheckpointConfig.every = {steps}
CheckpointConfig.keep = 1
EvaluationConfig.every = {steps}
EvaluationConfig.batches = {batches}
RunConfig.log_every = 20
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/scaling')
    parser.add_argument('--text', required=True, help='.txt or .jsonl files to train on')
    parser.add_argument('--held_out', required=True, help='the same, of the same kind, to evaluate on')
    parser.add_argument('--vocabulary', default='bytes')
    parser.add_argument('--vocab_size', type=int, default=384, help='of the model, at least that of the vocabulary')
    parser.add_argument('--sizes', default=SIZES, help='emb_dim x layers')
    parser.add_argument('--budgets', default=BUDGETS, help='FLOPs of each run')
    parser.add_argument('--rows', type=int, default=ROWS)
    parser.add_argument('--length', type=int, default=LENGTH)
    parser.add_argument('--rate', type=float, default=1e-2)
    parser.add_argument('--batches', type=int, default=40, help='of the evaluation')
    parser.add_argument('--dry_run', action='store_true', help='only list the runs')
    parser.add_argument('--picture', default='', help='a .png of the fit')
    arguments = parser.parse_args()

    root = Path(arguments.workdir)
    planned = sweep(root, arguments)
    total = sum(steps * per_step for _, steps, per_step in planned)
    print(f'{len(planned)} runs, {total:.3g} FLOPs', flush=True)
    if arguments.dry_run:
        return
    for gin, steps, per_step in planned:
        workdir = gin.with_suffix('')
        if not is_trained(workdir, steps):
            before = time.process_time()
            run('train', f'--workdir={workdir}', f'--gin_file={gin}')
            seconds = time.process_time() - before
            print(f'{steps * per_step:.3g} FLOPs in {seconds:.0f} CPU seconds', flush=True)
    fit = [f'--fit={root}/*', f'--json={root}/fit.json']
    run('plan', *fit, *([f'--plot={arguments.picture}'] if arguments.picture else []))


def sweep(root: Path, arguments: argparse.Namespace) -> list[tuple[Path, int, float]]:
    """Writes the gin file of each run; returns it with the run's steps and the FLOPs of a step."""
    planned = []
    batch = Batch(arguments.rows, (arguments.length,))
    for size in arguments.sizes.split(','):
        emb_dim, layers = map(int, size.split('x'))
        shape = {'emb_dim': emb_dim, 'layers': layers, 'heads': max(1, emb_dim // 16), 'mlp_dim': 8 * emb_dim // 3}
        text = MODEL.format(vocab_size=arguments.vocab_size, **shape)
        root.mkdir(parents=True, exist_ok=True)
        model = root / f'model_{size}.gin'
        model.write_text(text)
        config = parse([str(model)]).read(ModelConfig)
        for budget in arguments.budgets.split(','):
            per_step = flops_per_token(config, batch) * batch.tokens
            steps = math.floor(float(budget) / per_step)
            name = f'{size}_{float(budget):.0e}'.replace('+', '')
            print(f'{name}: {count_parameters(config):,} parameters, {steps * batch.tokens:,} tokens, {steps} steps')
            if steps < FEWEST_STEPS:
                print(f'  left out: fewer than {FEWEST_STEPS} steps')
                continue
            gin = root / f'{name}.gin'
            values = vars(arguments) | {'steps': steps, 'warmup': max(1, steps // 20)}
            gin.write_text(text + RUN.format(**values))
            planned.append((gin, steps, per_step))
    return planned


if __name__ == '__main__':
    main()
