"""Splits the loss of denoisers into text and sentinels, by the number of the sentinel, for every checkpoint of a run.

    python experiments/ul2_sentinels.py --gin_file=run.gin --workdir=runs/mine text_ul2_x_3_50 text_ul2_r_3_15

Prints nats per target token on the first `--examples` of the validation split. The sentinels of a window are numbered
from 0; those of high numbers occur only in denoisers with many short spans. docs/ul2.md reports a run.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import numpy as np

from t5flan.configurables import parse
from t5flan.data.batches.converter import make_batch
from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.language_model import load
from t5flan.tasks import register_all

EDGES = (0, 10, 28, 50, 10_000)
ROWS = 4  # read together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gin_file', required=True, help='the settings of the run')
    parser.add_argument('--workdir', required=True)
    parser.add_argument('--examples', type=int, default=8)
    parser.add_argument('tasks', nargs='+', help='tasks of an encoder-decoder')
    arguments = parser.parse_args()
    config = dataclasses.replace(parse([arguments.gin_file]).read(DataConfig), split='validation')
    register_all(config)
    vocabulary = load_vocabulary(config.vocabulary, config.extra_ids, config.mode_tokens)
    number_of = np.full(vocabulary.vocab_size, -1)
    number_of[list(vocabulary.sentinel_ids)] = np.arange(vocabulary.sentinel_count)
    steps = sorted(int(path.name) for path in Path(arguments.workdir, 'checkpoints').iterdir() if path.name.isdecimal())
    for task in arguments.tasks:
        rows = [[example] for example in eval_examples(config, vocabulary, task, arguments.examples)]
        batch = make_batch(config.format, config.feature_lengths, rows, False, vocabulary.start_id)
        targets_BT, weights_BT = batch['decoder_target_tokens'], batch.pop('decoder_loss_weights')
        numbers_BT = np.where(weights_BT > 0, number_of[targets_BT], -2)
        print(f'{task}: {(numbers_BT >= 0).sum() / (numbers_BT > -2).sum():.1%} of the targets are sentinels')
        for step in steps:
            model, nats = load(arguments.workdir, step), []
            for start in range(0, len(rows), ROWS):
                logits_BTV = model.logits({name: array[start : start + ROWS] for name, array in batch.items()})
                log_probs_BTV = np.asarray(jax.nn.log_softmax(logits_BTV))
                chosen_BT1 = targets_BT[start : start + ROWS, :, None]
                nats.append(-np.take_along_axis(log_probs_BTV, chosen_BT1, -1)[..., 0])
            print(f'step {step:4}: {line(np.concatenate(nats), numbers_BT)}', flush=True)


def line(nats_BT: np.ndarray, numbers_BT: np.ndarray) -> str:
    """Means over all targets, the text, the sentinels, and the sentinels by their number (-1 text, -2 padding)."""
    groups = {'all': numbers_BT > -2, 'text': numbers_BT == -1, 'sentinels': numbers_BT >= 0}
    for low, high in zip(EDGES, EDGES[1:]):
        groups[f'from {low}'] = (numbers_BT >= low) & (numbers_BT < high)
    return ', '.join(f'{name} {nats_BT[group].mean():.2f}' for name, group in groups.items() if group.any())


if __name__ == '__main__':
    main()
