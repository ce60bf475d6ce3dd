"""Plants canaries in a corpus, pretrains a tiny decoder on it, and measures what it has memorized, by repeats.

    python experiments/canaries.py --workdir=runs/canaries --text='books/*.txt'

Canaries are random words, planted 1, 10 and 100 times each (Carlini et al. 2019, arXiv:1802.08232). The decoder reads
bytes; it sees the corpus, canaries included, about once. Prints the t5flan commands that it runs, and a Markdown
table. A stopped run continues when started again. docs/ul2.md reports a run.
"""

import argparse
import json
import math
from pathlib import Path

from t5flan.data.records.paths import match_files

from runs import is_trained, markdown, require_same_settings, run

REPEATS = (1, 10, 100)
ROWS, LENGTH = 16, 256
"""Rows of a batch, and bytes of a row."""
GIN = """
include 'models/tiny_decoder.gin'
include 'runs/pretrain.gin'
ModelConfig.emb_dim = {width}
ModelConfig.mlp_dim = {mlp}
ModelConfig.head_dim = {head}
ModelConfig.num_decoder_layers = {layers}
MIXTURE = 'planted'
VOCABULARY = 'bytes'
BATCH_SIZE = {rows}
FEATURE_LENGTHS = {{'targets': {length}}}
STEPS = {steps}
LEARNING_RATE = {rate}
WARMUP_STEPS = {warmup}
DataConfig.format = 'causal_lm'
OptimizerConfig.schedule = 'linear'
OptimizerConfig.final_ratio = 0.1
CheckpointConfig.every = {steps}
EvaluationConfig.every = 0
RunConfig.log_every = 20
text/TextFiles.name = 'text'
text/TextFiles.train = '{text}'
canaries/TextFiles.name = 'canaries'
canaries/TextFiles.train = '{canaries}'
canaries/TextFiles.held_out = 0.001
DataConfig.text_files = [@text/TextFiles(), @canaries/TextFiles()]
Mixture.name = 'planted'
Mixture.rates = {rates}
DataConfig.mixtures = [@Mixture()]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/canaries')
    parser.add_argument('--text', required=True, help='.txt files to plant the canaries in: a path or glob')
    parser.add_argument('--count', type=int, default=10, help='canaries for each number of repeats')
    parser.add_argument('--references', type=int, default=500, help='random texts that a canary is compared with')
    parser.add_argument('--width', type=int, default=128)
    parser.add_argument('--layers', type=int, default=4)
    parser.add_argument('--rate', type=float, default=0.03, help='the largest learning rate')
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    root = Path(arguments.workdir)
    root.mkdir(parents=True, exist_ok=True)
    require_same_settings(root, {name: value for name, value in vars(arguments).items() if name != 'workdir'})

    canaries, result = root / 'canaries.jsonl', root / 'memorization.json'
    seed, repeats = f'--seed={arguments.seed}', f'--repeats={",".join(map(str, REPEATS))}'
    run('memorization', f'--make_canaries={canaries}', repeats, f'--count={arguments.count}', seed)
    steps = pretrain(root, canaries, arguments)
    given = [f'--checkpoint={root / "run"}', f'--input={canaries}', f'--references={arguments.references}']
    run('memorization', *given, f'--json={result}')
    print(f'\n{steps} steps of {ROWS} x {LENGTH} bytes\n')
    print(table(json.loads(result.read_text())))


def pretrain(root: Path, canaries: Path, arguments: argparse.Namespace) -> int:
    """Trains the decoder on about as many bytes as the corpus has; returns the steps."""
    texts = sum(Path(path).stat().st_size for path in match_files(arguments.text, '--text'))
    planted = sum(len(json.loads(line)['text']) for line in canaries.read_text().splitlines())
    steps = math.ceil((texts + planted) / (ROWS * LENGTH))
    gin = root / 'run.gin'
    gin.write_text(
        GIN.format(
            width=arguments.width,
            head=arguments.width // 4,
            mlp=3 * arguments.width,
            layers=arguments.layers,
            rows=ROWS,
            length=LENGTH,
            steps=steps,
            rate=arguments.rate,
            warmup=steps // 20,
            text=arguments.text,
            canaries=canaries,
            rates={'text_causal_lm': texts, 'canaries_causal_lm': planted},
        )
    )
    if not is_trained(root / 'run', steps):
        run('train', f'--workdir={root / "run"}', f'--gin_file={gin}', f'--gin.DataConfig.seed={arguments.seed}')
    return steps


def table(found: dict) -> str:
    """What was measured for each number of repeats, with 95 % intervals."""
    titles = (
        'repeats',
        'canaries',
        'continued word for word',
        'tokens right',
        'nats per token',
        'exposure, bits',
        'fit',
    )
    rows = []
    for repeats in map(str, REPEATS):
        one = found[repeats]
        shares = [_cell(one, name, '.0%') for name in ('exact', 'accuracy')]
        bits = [_cell(one, name, '.1f') for name in ('exposure', 'exposure_fit')]
        rows.append((repeats, str(one['texts']), *shares, f'{-one["log_likelihood"]:.2f}', *bits))
    return markdown(titles, rows)


def _cell(one: dict, name: str, form: str) -> str:
    low, high = one['intervals'][name]
    return f'{one[name]:{form}} ({low:{form}} to {high:{form}})'


if __name__ == '__main__':
    main()
