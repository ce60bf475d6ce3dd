"""The features that a format needs, the tokens they take, and trimming an example to the feature lengths."""

from collections.abc import Mapping, Sequence

import numpy as np

from t5flan.data.preprocessing.examples import Example
from t5flan.errors import UserError

LOSS_WEIGHTS = 'targets_loss_weights'
STARTED = 'started'
"""True in an example whose tokens are all of its row: a decoder-only model reads no start token before them."""
NO_TOKENS = np.zeros(0, np.int32)


def row_capacity(format: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Tokens that fit in a row: (encoder, decoder), or (decoder,) for a decoder-only model."""
    if format == 'encoder_decoder':
        return lengths['inputs'], lengths['targets']
    return (lengths.get('inputs', 0) + lengths['targets'],)


def row_cost(format: str, example: Example) -> tuple[int, ...]:
    """Tokens of an example, per entry of `row_capacity`."""
    inputs, targets = len(example.get('inputs', NO_TOKENS)), len(example['targets'])
    return (inputs, targets) if format == 'encoder_decoder' else (inputs + targets,)


def check_features(format: str, lengths: Mapping[str, int], features: Sequence[str], task: str) -> None:
    """Raises a UserError if a feature that a format needs is missing in the task or in the feature lengths."""
    if 'targets' not in features:
        found = ', '.join(features)
        raise UserError(f"task {task} has no feature 'targets', only {found}. Set another DataConfig.mixture.")
    if format == 'encoder_decoder' and 'inputs' not in features:
        raise UserError(f"task {task} has no 'inputs' for an encoder-decoder. Set DataConfig.format='causal_lm'.")
    if 'inputs' in features and 'inputs' not in lengths:
        raise UserError(f"DataConfig.feature_lengths={dict(lengths)} has no length for 'inputs' of {task}. Set it.")


def fit_example(example: Example, lengths: Mapping[str, int], format: str = 'encoder_decoder') -> tuple[Example, bool]:
    """Trims an example to the feature lengths; returns it and whether anything was cut.

    Loss weights are trimmed like their targets. A conversation in a decoder-only row (conversations.py) may divide the
    row between its features freely: only tokens beyond the row are cut. An example whose maker already dropped text
    ('turns_left_out', 'shortened') counts as cut.
    """
    weights = example.get(LOSS_WEIGHTS)
    if weights is not None:
        if len(weights) != len(example['targets']):
            raise ValueError(f'{len(weights)} {LOSS_WEIGHTS} for {len(example["targets"])} targets')
        if format != 'encoder_decoder' and sum(row_cost(format, example)) <= sum(row_capacity(format, lengths)):
            return example, _was_cut(example)
    long = [name for name in ('inputs', 'targets') if len(example.get(name, NO_TOKENS)) > lengths.get(name, 0)]
    cut = {name: example[name][: lengths[name]] for name in long}
    if weights is not None and 'targets' in cut:
        cut[LOSS_WEIGHTS] = weights[: lengths['targets']]
    return ({**example, **cut}, True) if cut else (example, _was_cut(example))


def _was_cut(example: Example) -> bool:
    """Whether its maker dropped text to make it fit: turns of a conversation, the middle of a passage."""
    return bool(example.get('turns_left_out') or example.get('shortened'))
