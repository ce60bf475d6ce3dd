"""Feature converters: examples of 'inputs' and 'targets' -> the arrays that the models read, under T5X's names.

Encoder-decoder example: two examples packed into one row, feature lengths {'inputs': 7, 'targets': 6}

    inputs [7, 8, 1] and [5, 1], targets [3, 9, 1] and [4, 1]

    encoder_input_tokens    7 8 1 5 1 0 0     decoder_target_tokens   3 9 1 4 1 0
    encoder_segment_ids     1 1 1 2 2 0 0     decoder_input_tokens    0 3 9 0 4 0
    encoder_positions       0 1 2 0 1 0 0     decoder_loss_weights    1 1 1 1 1 0
                                              decoder_segment_ids     1 1 1 2 2 0
                                              decoder_positions       0 1 2 0 1 0

Prefix LM example: inputs [9, 4, 1], targets [3, 1] in a row of 7 (as SeqIO's PrefixLMFeatureConverter)

    decoder_target_tokens     9 4 1 3 1 0 0
    decoder_input_tokens      0 9 4 1 3 0 0
    decoder_loss_weights      0 0 0 1 1 0 0     the loss is on the targets
    decoder_causal_attention  1 1 1 1 0 0 0     the start token and the inputs see each other
    decoder_segment_ids       1 1 1 1 1 0 0
    decoder_positions         0 1 2 3 4 0 0

A causal LM is the same without decoder_causal_attention; its examples may have no inputs.

Decoder-only models whose tokenizer adds no start token (`starts=False`: GPT-2, Qwen, SmolLM2) read the first token of
an example first, as transformers trains them: inputs [9, 4, 1], targets [3, 1] become

    decoder_target_tokens     4 1 3 1 0 0 0
    decoder_input_tokens      9 4 1 3 0 0 0
    decoder_loss_weights      0 0 1 1 0 0 0

An example may give its targets loss weights, 'targets_loss_weights', float32 [T] (in a conversation, the user's turns
have weight 0). Without them, every target has weight 1.

    targets [3, 1, 6, 1, 4, 1]   targets_loss_weights [1, 1, 0, 0, 1, 1]   decoder_loss_weights 1 1 0 0 1 1
"""

from collections.abc import Mapping, Sequence

import numpy as np

from t5flan.data.preprocessing.examples import Example
from t5flan.data.preprocessing.features import LOSS_WEIGHTS, NO_TOKENS, STARTED, row_capacity

Batch = dict[str, np.ndarray]
Rows = Sequence[Sequence[Example]]


def make_batch(
    format: str, lengths: Mapping[str, int], rows: Rows, packed: bool, start_id: int = 0, starts: bool = True
) -> Batch:
    """Converts rows of examples to model features.

    Args:
        rows: the examples of each row, in order; a row without examples is padding, without loss.
        packed: whether an encoder-decoder gets segment ids and positions (a decoder-only model always does).
        start_id: the first token that the decoder reads; the vocabulary's.
        starts: whether a decoder-only model reads `start_id` first. If not, and in an example marked 'started' (a chat
            template writes its own), the example's first token has no loss.

    Returns:
        int32 [B, S] and [B, T]; decoder_loss_weights is float32.
    """
    capacity = row_capacity(format, lengths)
    if format == 'encoder_decoder':
        encoder = _place([[example['inputs'] for example in row] for row in rows], capacity[0])
        decoder = _place([[example['targets'] for example in row] for row in rows], capacity[1])
        batch = {'encoder_input_tokens': encoder[0], **_decoder(*decoder, start_id)}
        sizes = [[(0, len(example['targets'])) for example in row] for row in rows]
        batch['decoder_loss_weights'] = _loss_weights(rows, decoder[1] > 0, sizes)
        if packed:
            batch |= {'encoder_segment_ids': encoder[1], 'encoder_positions': encoder[2]}
            batch |= {'decoder_segment_ids': decoder[1], 'decoder_positions': decoder[2]}
        return batch
    joined = [[np.concatenate([one.get('inputs', NO_TOKENS), one['targets']]) for one in row] for row in rows]
    # How many tokens at the beginning of each example are not predicted.
    skipped = [[0 if starts and not one.get(STARTED) else 1 for one in row] for row in rows]
    pairs = [list(zip(*row, strict=True)) for row in zip(joined, skipped, strict=True)]
    tokens, segments, positions = _place([[tokens_T[first:] for tokens_T, first in row] for row in pairs], capacity[0])
    sizes = [
        [_predicted(one, first) for one, first in zip(*row, strict=True)] for row in zip(rows, skipped, strict=True)
    ]
    prefixes = np.zeros_like(tokens)  # number of inputs of the example that are predicted, at each position
    for b, row_sizes in enumerate(sizes):
        start = 0
        for prefix, predicted in row_sizes:
            end = start + prefix + predicted
            prefixes[b, start:end], start = prefix, end
    real = segments > 0
    batch = _decoder(tokens, segments, positions, start_id)
    if any(map(any, skipped)):
        started = lambda tokens_T, first: np.concatenate([[start_id] * (1 - first), tokens_T[:-1]])
        read = [[started(*pair)[: len(pair[0]) - pair[1]] for pair in row] for row in pairs]
        batch['decoder_input_tokens'] = _place(read, capacity[0])[0]
    batch |= {'decoder_segment_ids': segments, 'decoder_positions': positions}
    batch['decoder_loss_weights'] = _loss_weights(rows, real & (positions >= prefixes), sizes)
    if format == 'prefix_lm':
        # One more than the inputs: position p reads the token before it, so it reads the last input at p = prefix.
        batch['decoder_causal_attention'] = (real & (positions <= prefixes) & (prefixes > 0)).astype(np.int32)
    return batch


def _predicted(example: Example, first: int) -> tuple[int, int]:
    """How many inputs and targets of an example are predicted, without its `first` tokens."""
    inputs, targets = len(example.get('inputs', NO_TOKENS)), len(example['targets'])
    return max(inputs - first, 0), max(targets - max(first - inputs, 0), 0)


def _loss_weights(rows: Rows, targets_BT: np.ndarray, sizes: Sequence[Sequence[tuple[int, int]]]) -> np.ndarray:
    """1 on the targets, or their example's loss weights. [B, T] float32.

    `sizes`: the predicted inputs and targets of each example of a row.
    """
    weights_BT = targets_BT.astype(np.float32)
    for b, row in enumerate(rows):
        if not any(LOSS_WEIGHTS in example for example in row):
            continue
        start = 0
        for example, (inputs, targets) in zip(row, sizes[b], strict=True):
            start, end = start + inputs, start + inputs + targets
            if LOSS_WEIGHTS in example:
                weights_BT[b, start:end] = example[LOSS_WEIGHTS][len(example['targets']) - targets :]
            start = end
    return weights_BT


def _decoder(tokens: np.ndarray, segments: np.ndarray, positions: np.ndarray, start_id: int) -> Batch:
    """The targets, and the decoder's inputs: the targets shifted right, with the start token first in each segment."""
    shifted = np.zeros_like(tokens)
    shifted[:, 1:] = tokens[:, :-1]
    shifted = np.where(positions > 0, shifted, start_id)
    return {'decoder_target_tokens': tokens, 'decoder_input_tokens': np.where(segments > 0, shifted, 0)}


def _place(rows: Sequence[Sequence[np.ndarray]], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segment ids (from 1; 0 is padding) and positions (from 0 in each segment), each [B, length] int32."""
    tokens, segments, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    count = np.arange(length, dtype=np.int32)
    for b, row in enumerate(rows):
        start = 0
        for segment, piece in enumerate(row, 1):
            end = start + len(piece)
            tokens[b, start:end], segments[b, start:end] = piece, segment
            positions[b, start:end] = count[: end - start]
            start = end
    return tokens, segments, positions
