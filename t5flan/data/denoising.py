"""Learning from raw text: T5's span corruption, prefix language modelling and causal language modelling over token arrays.

Span corruption is that of T5 (arXiv:1910.10683, section 3.1.4): spans of tokens are replaced by one sentinel each, the
targets are the sentinels followed by what they stand for.

    tokens   Thank you for inviting me to your party last week
    noise     .     .   x    x     .   .   .    x     .   .
    inputs   Thank you <extra_id_0> me to your <extra_id_1> last week </s>
    targets  <extra_id_0> for inviting <extra_id_1> party <extra_id_2> </s>

A text longer than the features hold becomes several examples, one per window of tokens; no token is lost.
"""

import numpy as np

from t5flan.data.examples import Context, Example, example_fn
from t5flan.data.vocabularies import Vocabulary
from t5flan.errors import UserError


def noise_counts(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Noise tokens and spans of a text of `length` tokens, rounded as T5 rounds them.

    At least one token is noise and one is not; every span has a token before it that is not noise.

    >>> noise_counts(568, 0.15, 3.0)
    (85, 28)
    """
    noise = min(max(round(length * noise_density), 1), length - 1)
    spans = max(round(noise / mean_span_length), 1)
    return noise, min(spans, noise, length - noise)


def corrupted_lengths(length: int, noise_density: float, mean_span_length: float) -> tuple[int, int]:
    """Tokens of inputs and targets, end of sequence included, that `length` tokens become.

    >>> corrupted_lengths(568, 0.15, 3.0)
    (512, 114)
    """
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    return length - noise + spans + 1, noise + spans + 1


def window_length(inputs_length: int, targets_length: int, noise_density: float, mean_span_length: float) -> int:
    """The most tokens whose corruption fits both features (T5's random_spans_helper, which looks at the inputs alone).

    >>> window_length(512, 114, 0.15, 3.0)
    568

    Raises:
        UserError: not even two tokens fit.
    """
    fits = lambda n: all(
        a <= b for a, b in zip(corrupted_lengths(n, noise_density, mean_span_length), (inputs_length, targets_length))
    )
    for length in range(inputs_length + targets_length, 1, -1):
        if fits(length):
            return length
    raise UserError(
        f'span corruption fits no text in inputs of {inputs_length} and targets of {targets_length} tokens. Set larger '
        'DataConfig.feature_lengths.'
    )


def window_sizes(length: int, most: int) -> list[int]:
    """Sizes of the windows that cover `length` tokens: full ones, then the rest; a single last token takes company.

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


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` non-empty segments of `items` items, every division equally likely. [segments]"""
    lengths = np.empty(segments, np.int64)
    lengths[:-1] = np.sort(rng.permutation(items - 1)[: segments - 1]) + 1  # where each segment ends
    lengths[-1] = items
    lengths[1:] -= lengths[:-1].copy()
    return lengths


def noise_mask(length: int, noise_density: float, mean_span_length: float, rng: np.random.Generator) -> np.ndarray:
    """T5's random-spans noise: True where a token is replaced; begins with a token that is not. [length] bool"""
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    lengths = np.empty(2 * spans, np.int64)  # not noise, noise, not noise, …
    lengths[::2], lengths[1::2] = (random_segmentation(length - noise, spans, rng), random_segmentation(noise, spans, rng))
    return np.repeat(np.arange(2 * spans) % 2 == 1, lengths)


def corrupt(tokens_T: np.ndarray, noise_T: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, without end of sequence: every span of noise, and of the rest, as one sentinel.

    The sentinels count down from `<extra_id_0>`. Inputs and targets together rebuild the tokens (see `restore`).

    Raises:
        UserError: more spans than the vocabulary has sentinels.
    """
    return _collapse(tokens_T, noise_T, vocabulary), _collapse(tokens_T, ~noise_T, vocabulary)


def _collapse(tokens_T: np.ndarray, noise_T: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    starts_T = noise_T.copy()
    starts_T[1:] &= ~noise_T[:-1]
    span_T = np.cumsum(starts_T)
    if span_T.size and span_T[-1]:
        vocabulary.sentinel_id(int(span_T[-1]) - 1)  # raises where there are too few
    marked_T = np.where(starts_T, vocabulary.sentinel_id(0) + 1 - span_T, tokens_T)
    return marked_T[starts_T | ~noise_T].astype(np.int32)


def restore(inputs_T: np.ndarray, targets_T: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The tokens that `corrupt` made inputs and targets of: each sentinel replaced by what the other side has after it."""
    lowest, highest = (vocabulary.sentinel_id(vocabulary.sentinel_count - 1), vocabulary.sentinel_id(0))
    is_sentinel = lambda x_T: (x_T >= lowest) & (x_T <= highest)
    starts = np.flatnonzero(is_sentinel(targets_T))
    spans = {int(targets_T[a]): targets_T[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(targets_T)])}
    pieces = [spans[int(token)] if sentinel else [token] for token, sentinel in zip(inputs_T, is_sentinel(inputs_T))]
    return np.concatenate([np.asarray(piece, np.int32) for piece in pieces]) if pieces else np.zeros(0, np.int32)


def split_point(length: int, inputs_length: int, targets_length: int, rng: np.random.Generator) -> int:
    """Where a text of `length` tokens becomes prefix and continuation, uniform over the points where both fit (end excluded)."""
    lowest, highest = max(1, length - targets_length), min(length - 1, inputs_length)
    return int(rng.integers(lowest, highest + 1))


@example_fn
def span_corruption(
    example: Example, context: Context, *, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> list[Example]:
    """The tokens 'targets' of a text as span-corrupted 'inputs' and 'targets', an example per window."""
    tokens_T, lengths = example['targets'], context.feature_lengths
    most = max(2, len(tokens_T))
    if 'inputs' in lengths and 'targets' in lengths:
        most = _window(lengths['inputs'], lengths['targets'], noise_density, mean_span_length)
    made = []
    for window_T in windows(tokens_T, most):
        if len(window_T) > 1:  # one token alone leaves nothing to tell it by
            noise_T = noise_mask(len(window_T), noise_density, mean_span_length, context.rng)
            inputs_T, targets_T = corrupt(window_T, noise_T, context.vocabulary)
            made.append({'inputs': inputs_T, 'targets': targets_T})
    return made


_WINDOWS: dict[tuple[int, int, float, float], int] = {}


def _window(*key: float) -> int:
    if key not in _WINDOWS:
        _WINDOWS[key] = window_length(*key)
    return _WINDOWS[key]


@example_fn
def prefix_lm(example: Example, context: Context) -> list[Example]:
    """The tokens 'targets' of a text, split at a random point: 'inputs' before it, 'targets' after it, an example per window.

    Windows hold as many tokens as the longer feature (less its end of sequence), so that no split loses a token.
    """
    tokens_T, lengths = example['targets'], context.feature_lengths
    inputs_length = lengths.get('inputs', len(tokens_T) + 1) - 1
    targets_length = lengths.get('targets', len(tokens_T) + 1) - 1
    made = []
    for window_T in windows(tokens_T, max(inputs_length, targets_length, 2)):
        if len(window_T) > 1:
            point = split_point(len(window_T), inputs_length, targets_length, context.rng)
            made.append({'inputs': window_T[:point], 'targets': window_T[point:]})
    return made


@example_fn
def causal_lm(example: Example, context: Context) -> list[Example]:
    """The tokens 'targets' of a text, ended, in windows of the feature's length; only the last window holds the end."""
    tokens_T = np.append(example['targets'], np.int32(context.vocabulary.eos_id)).astype(np.int32)
    return [
        {'targets': window_T} for window_T in windows(tokens_T, max(2, context.feature_lengths.get('targets', len(tokens_T))))
    ]
