"""Objectives over raw text: T5's span corruption, prefix language modelling and causal language modelling.

Span corruption (T5, arXiv:1910.10683, section 3.1.4) replaces each span of noise tokens with one sentinel; the targets
are the sentinels, each followed by the tokens it replaces.

    tokens   Thank you for inviting me to your party last week
    noise     .     .   x    x     .   .   .    .     x    x
    inputs   Thank you <extra_id_0> me to your party <extra_id_1> </s>
    targets  <extra_id_0> for inviting <extra_id_1> last week </s>

A text longer than the features becomes several examples, one per window of tokens; no token is lost. Control tokens
and other markers stand in front of every window and are never noise (controls.py).
"""

import functools
import itertools

import numpy as np

from t5flan.data.preprocessing.controls import PREFIX, PREFIX_LOSS_WEIGHTS, pieces
from t5flan.data.preprocessing.examples import Context, Example, example_fn
from t5flan.data.preprocessing.features import LOSS_WEIGHTS
from t5flan.data.vocabulary.vocabulary import HOW_TO_ADD_SENTINELS, Vocabulary
from t5flan.errors import UserError


def noise_counts(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Number of noise tokens and of spans in a text of `length` tokens, rounded as in T5.

    At least one token is noise and one is not, and every span follows a token that is not noise.

    >>> noise_counts(568, 0.15, 3.0)
    (85, 28)
    """
    noise = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    return noise, min(spans, noise, length - noise)


def corrupted_lengths(length: int, noise_density: float, mean_span: float) -> tuple[int, int]:
    """Tokens of the inputs and targets made from `length` tokens, end of sequence included.

    >>> corrupted_lengths(568, 0.15, 3.0)
    (512, 114)
    """
    noise, spans = noise_counts(length, noise_density, mean_span)
    return length - noise + spans + 1, noise + spans + 1


def window_length(
    inputs: int, targets: int, noise_density: float, mean_span: float, sentinels: int | None = None
) -> int:
    """The most tokens whose corruption fits both features (T5's random_spans_helper considers the inputs only).

    >>> window_length(512, 114, 0.15, 3.0)
    568
    >>> window_length(512, 512, 0.5, 3.0), window_length(512, 512, 0.5, 3.0, sentinels=100)
    (766, 602)

    Args:
        inputs: length of the feature, end of sequence included.
        sentinels: the most spans there may be; None for any number. (T5's code has no limit: with too many spans its
            sentinels run into the ids of ordinary words.)

    Raises:
        UserError: not even two tokens fit.
    """
    for length in range(inputs + targets, 1, -1):
        corrupted = corrupted_lengths(length, noise_density, mean_span)
        enough = sentinels is None or noise_counts(length, noise_density, mean_span)[1] <= sentinels
        if enough and corrupted[0] <= inputs and corrupted[1] <= targets:
            return length
    if sentinels == 0:
        raise UserError(f'span corruption needs sentinels, the vocabulary has none. {HOW_TO_ADD_SENTINELS}')
    raise UserError(f'no text fits in {inputs} + {targets} tokens. Set larger DataConfig.feature_lengths.')


def window_sizes(length: int, most: int) -> list[int]:
    """Sizes of the windows that cover `length` tokens: full ones, then the rest, which is never a single token.

    >>> window_sizes(21, 10)
    [10, 9, 2]
    """
    full, rest = divmod(length, most)
    sizes = [most] * full + [rest] * (rest > 0)
    if len(sizes) > 1 and sizes[-1] == 1 and most > 2:
        sizes[-2:] = [most - 1, 2]
    return sizes


def windows(tokens_T: np.ndarray, most: int) -> list[np.ndarray]:
    """The tokens as consecutive windows of at most `most`."""
    if len(tokens_T) <= most:
        return [tokens_T]
    return np.split(tokens_T, np.cumsum(window_sizes(len(tokens_T), most))[:-1])


def segment_lengths(items: int, segments: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of non-empty `segments` of `items` items, every division equally likely. int64 [rows, segments]."""
    ends_NS = np.empty((rows, segments), np.int64)
    ends_NS[:, -1] = items
    if segments > 1:  # cut at a random subset of the places between two items
        order_NI = rng.random((rows, items - 1), np.float32).argpartition(segments - 2, axis=1)
        ends_NS[:, :-1] = np.sort(order_NI[:, : segments - 1], axis=1) + 1
    return np.diff(ends_NS, axis=1, prepend=0)


def noise_masks(
    length: int,
    noise_density: float,
    mean_span: float,
    rows: int,
    rng: np.random.Generator,
    anywhere: bool = False,
) -> np.ndarray:
    """Random spans of noise: True where a token is replaced. bool [rows, length].

    All rows have the same number of spans and noise tokens (`noise_counts`), so that their examples have one shape.

    Args:
        anywhere: whether spans may be anywhere. False is T5's layout: a row begins with a token that is not noise and
            ends with noise, so a single span is always at the end.
    """
    noise, spans = noise_counts(length, noise_density, mean_span)
    ends = 2 if anywhere else 0  # with `anywhere` either end may be empty: draw one token more for each, then remove it
    kept_NS = segment_lengths(length - noise + ends, spans + (ends > 0), rows, rng)
    lengths_NS = np.zeros((rows, 2 * spans + 1), np.int64)  # not noise, noise, not noise, …
    lengths_NS[:, 1::2] = segment_lengths(noise, spans, rows, rng)
    lengths_NS[:, : 2 * kept_NS.shape[1] : 2] = kept_NS
    if anywhere:
        lengths_NS[:, [0, -1]] -= 1
    is_noise_S = np.tile(np.arange(2 * spans + 1) % 2 == 1, rows)
    return np.repeat(is_noise_S, lengths_NS.ravel()).reshape(rows, length)


def corrupt_rows(tokens_NT: np.ndarray, noise_NT: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, without end of sequence. int32 [N, I], [N, O].

    The inputs have a sentinel for each span; the targets have each span after its sentinel. Sentinels count down from
    `<extra_id_0>`. Inputs and targets together rebuild the tokens (see `span_pieces`).

    Args:
        noise_NT: their noise, with the same number of spans and noise tokens in each row (`noise_masks`).

    Raises:
        UserError: there are more spans than sentinels.
    """
    rows = len(tokens_NT)
    starts_NT = noise_NT.copy()
    starts_NT[:, 1:] &= ~noise_NT[:, :-1]
    spans = int(np.count_nonzero(starts_NT)) // rows
    vocabulary.sentinel_id(spans - 1)  # raises where there are too few
    sentinels = np.tile(np.array(vocabulary.sentinel_ids[:spans], np.int32), rows)
    marked_NT = tokens_NT.astype(np.int32)
    marked_NT[starts_NT] = sentinels
    inputs_NI = marked_NT[starts_NT | ~noise_NT].reshape(rows, -1)
    is_first = starts_NT[noise_NT]
    places = np.arange(len(is_first)) + np.cumsum(is_first)
    targets = np.empty(len(is_first) + len(sentinels), np.int32)
    targets[places] = tokens_NT[noise_NT]
    targets[places[is_first] - 1] = sentinels
    return inputs_NI, targets.reshape(rows, -1)


def span_pieces(
    inputs_T: np.ndarray, targets_T: np.ndarray, vocabulary: Vocabulary
) -> list[tuple[np.ndarray, int | None]]:
    """The original text of an example in pieces: (tokens, number of their sentinel), with None for kept tokens."""
    number_of = {id: k for k, id in enumerate(vocabulary.sentinel_ids)}
    sentinels = lambda x_T: np.flatnonzero(np.isin(x_T, vocabulary.sentinel_ids)).tolist()
    starts = sentinels(targets_T)
    spans = {int(targets_T[a]): targets_T[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(targets_T)])}
    pieces: list[tuple[np.ndarray, int | None]] = []
    start = 0
    for place in sentinels(inputs_T):
        pieces += [(inputs_T[start:place], None), (spans[int(inputs_T[place])], number_of[int(inputs_T[place])])]
        start = place + 1
    pieces.append((inputs_T[start:], None))
    return [piece for piece in pieces if len(piece[0])]


def split_point(length: int, inputs: int, targets: int, rng: np.random.Generator) -> int:
    """Where to split a text into prefix and continuation: uniform over the points where both fit (end excluded)."""
    lowest, highest = max(1, length - targets), min(length - 1, inputs)
    return int(rng.integers(lowest, highest + 1))


def window_blocks(tokens_T: np.ndarray, most: int) -> list[np.ndarray]:
    """The tokens in windows of at most `most`, one array [windows, size] for each size.

    No token is lost, except the only token of a text: no input could predict it.
    """
    sizes = window_sizes(len(tokens_T), most)
    blocks, start = [], 0
    for size, group in itertools.groupby(sizes):
        end = start + size * len(list(group))
        if size > 1:
            blocks.append(tokens_T[start:end].reshape(-1, size))
        start = end
    return blocks


@functools.cache
def span_window(
    inputs: int | None, targets: int | None, noise_density: float, mean_span: float, sentinels: int
) -> tuple[int, bool]:
    """Tokens of a window, and whether it is shorter than the features so that spans do not outnumber the sentinels.

    Without lengths only the sentinels limit it.
    """
    if inputs is not None and targets is not None:
        window = window_length(inputs, targets, noise_density, mean_span, sentinels)
        return window, window < window_length(inputs, targets, noise_density, mean_span)
    most = int((sentinels + 0.5) * mean_span / noise_density) + 2  # more would round to more spans
    return window_length(most, most, noise_density, mean_span, sentinels), True


@example_fn
def span_corruption(
    example: Example, context: Context, *, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> list[Example]:
    """Turns the tokens 'targets' of a text into span-corrupted 'inputs' and 'targets', one example per window."""
    lengths, vocabulary = context.feature_lengths, context.vocabulary
    made = []
    for prefix_P, tokens_T in pieces(example, vocabulary):
        features = _room(lengths.get('inputs'), prefix_P), lengths.get('targets')
        most, shortened = span_window(*features, noise_density, mean_span_length, vocabulary.sentinel_count)
        for block_NT in window_blocks(tokens_T, most):
            masks_NT = noise_masks(block_NT.shape[1], noise_density, mean_span_length, len(block_NT), context.rng)
            rows = zip(*corrupt_rows(block_NT, masks_NT, vocabulary))
            note = {'few_sentinels': True} if shortened and block_NT.shape[1] == most else {}
            made += [
                {'inputs': _after(prefix_P, inputs_I), 'targets': targets_O, **note} for inputs_I, targets_O in rows
            ]
    return made


def _room(length: int | None, prefix_P: np.ndarray) -> int | None:
    """Tokens of a feature that are left for the text behind a prefix.

    Raises:
        UserError: none is left.
    """
    if length is None or length > len(prefix_P) + 1:
        return None if length is None else length - len(prefix_P)
    problem = f'no text fits in {length} tokens behind {len(prefix_P)} control tokens'
    raise UserError(f'{problem}. Set larger DataConfig.feature_lengths.')


def _after(prefix_P: np.ndarray, tokens_T: np.ndarray) -> np.ndarray:
    return np.concatenate([prefix_P, tokens_T]) if len(prefix_P) else tokens_T


@example_fn
def prefix_lm(example: Example, context: Context) -> list[Example]:
    """Splits the tokens 'targets' of a text at a random point into 'inputs' and 'targets', one example per window.

    A window has as many tokens as the longer feature (without its end of sequence), so that no split loses a token.
    """
    lengths, made = context.feature_lengths, []
    for prefix_P, tokens_T in pieces(example, context.vocabulary):
        rooms = _room(lengths.get('inputs'), prefix_P), lengths.get('targets')
        inputs, targets = (len(tokens_T) if room is None else room - 1 for room in rooms)
        for window_T in windows(tokens_T, max(inputs, targets, 2)):
            if len(window_T) > 1:
                point = split_point(len(window_T), inputs, targets, context.rng)
                made.append({'inputs': _after(prefix_P, window_T[:point]), 'targets': window_T[point:]})
    return made


@example_fn
def causal_lm(example: Example, context: Context) -> list[Example]:
    """Cuts the tokens 'targets' of a text into windows of the feature's length; the last ends with end of sequence.

    Control tokens stand in front of each window; Control.loss_weight says whether they carry loss.
    """
    tokens_T = np.append(example['targets'], np.int32(context.vocabulary.eos_id)).astype(np.int32)
    most = max(2, context.feature_lengths.get('targets', len(tokens_T)))
    if PREFIX not in example:
        return [{'targets': window_T} for window_T in windows(tokens_T, most)]
    prefix_P, weights_P = example[PREFIX], example[PREFIX_LOSS_WEIGHTS]
    room = _room(most, prefix_P)
    assert room is not None  # as `most`
    weights = lambda window_T: np.concatenate([weights_P, np.ones(len(window_T), np.float32)])
    made = windows(tokens_T, room)
    return [{'targets': _after(prefix_P, window_T), LOSS_WEIGHTS: weights(window_T)} for window_T in made]
