"""What several tests need of span corruption: one row, and the text that an example was made of."""

import numpy as np

from t5flan.data.preprocessing.denoising import corrupt_rows, span_pieces


def corrupt(tokens_T, noise_T, vocabulary):
    """`corrupt_rows` for one row: inputs and targets."""
    inputs, targets = corrupt_rows(tokens_T[None], noise_T[None], vocabulary)
    return inputs[0], targets[0]


def restore(inputs_T, targets_T, vocabulary):
    """The tokens that inputs and targets were made of."""
    pieces = [tokens for tokens, _ in span_pieces(inputs_T, targets_T, vocabulary)]
    return np.concatenate(pieces).astype(np.int32) if pieces else np.zeros(0, np.int32)
