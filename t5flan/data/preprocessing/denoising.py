"""Learning from raw text: T5's span corruption, prefix language modelling and causal language modelling over token arrays.

Span corruption is that of T5 (arXiv:1910.10683, section 3.1.4): spans of tokens are replaced by one sentinel each, the
targets are the sentinels followed by what they stand for.

    tokens   Thank you for inviting me to your party last week
    noise     .     .   x    x     .   .   .    x     .   .
    inputs   Thank you <extra_id_0> me to your <extra_id_1> last week </s>
    targets  <extra_id_0> for inviting <extra_id_1> party <extra_id_2> </s>

A text longer than the features hold becomes several examples, one per window of tokens; no token is lost.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from t5flan.data.corpus_config import Denoiser
from t5flan.data.preprocessing.examples import Context, Example, example_fn
from t5flan.data.vocabulary.vocabulary import Vocabulary
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


def window_length(
    inputs_length: int, targets_length: int, noise_density: float, mean_span_length: float, sentinels: int | None = None
) -> int:
    """The most tokens whose corruption fits both features (T5's random_spans_helper, which looks at the inputs alone).

    >>> window_length(512, 114, 0.15, 3.0)
    568
    >>> window_length(512, 512, 0.5, 3.0), window_length(512, 512, 0.5, 3.0, sentinels=100)
    (766, 602)

    Args:
        sentinels: spans there may be, so that no sentinel is used twice; None: any number. T5's own code runs on into the
            ids of ordinary words.

    Raises:
        UserError: not even two tokens fit.
    """
    for length in range(inputs_length + targets_length, 1, -1):
        inputs, targets = corrupted_lengths(length, noise_density, mean_span_length)
        enough = sentinels is None or noise_counts(length, noise_density, mean_span_length)[1] <= sentinels
        if enough and inputs <= inputs_length and targets <= targets_length:
            return length
    if sentinels == 0:
        raise UserError(
            'span corruption needs a sentinel for every span, the vocabulary has none. Set DataConfig.extra_ids.'
        )
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


def segment_lengths(items: int, segments: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of `segments` non-empty segments of `items` items, every division equally likely. [rows, segments] int64"""
    ends_NS = np.empty((rows, segments), np.int64)
    ends_NS[:, -1] = items
    if segments > 1:  # which of the places between two items are cut: a random subset of them
        order_NI = rng.random((rows, items - 1), np.float32).argpartition(segments - 2, axis=1)
        ends_NS[:, :-1] = np.sort(order_NI[:, : segments - 1], axis=1) + 1
    return np.diff(ends_NS, axis=1, prepend=0)


def random_segmentation(items: int, segments: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths of the segments of one division. [segments]"""
    return segment_lengths(items, segments, 1, rng)[0]


def noise_masks(
    length: int,
    noise_density: float,
    mean_span_length: float,
    rows: int,
    rng: np.random.Generator,
    anywhere: bool = False,
) -> np.ndarray:
    """Random spans of noise: True where a token is replaced. [rows, length] bool

    All rows have as many spans and noise tokens as `noise_counts` says: they become arrays of one shape.

    Args:
        anywhere: False begins with a token that is not noise and ends with noise, as T5 does: a window with one span has it
            always at its end. True lets spans lie anywhere.
    """
    noise, spans = noise_counts(length, noise_density, mean_span_length)
    ends = 2 if anywhere else 0  # what is left on either side may be empty then: one too many is drawn, and taken off
    kept_NS = segment_lengths(length - noise + ends, spans + (ends > 0), rows, rng)
    lengths_NS = np.zeros((rows, 2 * spans + 1), np.int64)  # not noise, noise, not noise, …
    lengths_NS[:, 1::2] = segment_lengths(noise, spans, rows, rng)
    lengths_NS[:, : 2 * kept_NS.shape[1] : 2] = kept_NS
    if anywhere:
        lengths_NS[:, [0, -1]] -= 1
    is_noise_S = np.tile(np.arange(2 * spans + 1) % 2 == 1, rows)
    return np.repeat(is_noise_S, lengths_NS.ravel()).reshape(rows, length)


def noise_mask(length: int, noise_density: float, mean_span_length: float, rng: np.random.Generator) -> np.ndarray:
    """The noise of one text. [length] bool"""
    return noise_masks(length, noise_density, mean_span_length, 1, rng)[0]


def corrupt(tokens_T: np.ndarray, noise_T: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, without end of sequence: every span of noise, and of the rest, as one sentinel.

    The sentinels count down from `<extra_id_0>`. Inputs and targets together rebuild the tokens (see `restore`).

    Raises:
        UserError: more spans than the vocabulary has sentinels.
    """
    return _collapse(tokens_T, noise_T, vocabulary), _collapse(tokens_T, ~noise_T, vocabulary)


def corrupt_rows(tokens_NT: np.ndarray, noise_NT: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """As `corrupt`, for rows of as many spans and noise tokens each (`noise_masks`). int32 [N, I], [N, O]

    The targets are each span after its sentinel; none stands for what follows the last span.
    """
    rows = len(tokens_NT)
    starts_NT = noise_NT.copy()
    starts_NT[:, 1:] &= ~noise_NT[:, :-1]
    spans = np.count_nonzero(starts_NT) // rows
    sentinels = np.tile(vocabulary.sentinel_id(0) - np.arange(spans, dtype=np.int32), rows)
    vocabulary.sentinel_id(spans - 1)  # raises where there are too few
    marked_NT = tokens_NT.astype(np.int32)
    marked_NT[starts_NT] = sentinels
    inputs_NI = marked_NT[starts_NT | ~noise_NT].reshape(rows, -1)
    is_first = starts_NT[noise_NT]
    places = np.arange(len(is_first)) + np.cumsum(is_first)
    targets = np.empty(len(is_first) + len(sentinels), np.int32)
    targets[places] = tokens_NT[noise_NT]
    targets[places[is_first] - 1] = sentinels
    return inputs_NI, targets.reshape(rows, -1)


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
    pieces = [tokens for tokens, _ in span_pieces(inputs_T, targets_T, vocabulary)]
    return np.concatenate(pieces).astype(np.int32) if pieces else np.zeros(0, np.int32)


def span_pieces(
    inputs_T: np.ndarray, targets_T: np.ndarray, vocabulary: Vocabulary
) -> list[tuple[np.ndarray, int | None]]:
    """The text of an example in pieces: tokens, and the number of their sentinel where they were replaced by one."""
    lowest, highest = (vocabulary.sentinel_id(vocabulary.sentinel_count - 1), vocabulary.sentinel_id(0))
    sentinels = lambda x_T: np.flatnonzero((x_T >= lowest) & (x_T <= highest)).tolist()
    starts = sentinels(targets_T)
    spans = {int(targets_T[a]): targets_T[a + 1 : b] for a, b in zip(starts, [*starts[1:], len(targets_T)])}
    pieces: list[tuple[np.ndarray, int | None]] = []
    start = 0
    for place in sentinels(inputs_T):
        pieces += [(inputs_T[start:place], None), (spans[int(inputs_T[place])], highest - int(inputs_T[place]))]
        start = place + 1
    pieces.append((inputs_T[start:], None))
    return [piece for piece in pieces if len(piece[0])]


def split_point(length: int, inputs_length: int, targets_length: int, rng: np.random.Generator) -> int:
    """Where a text of `length` tokens becomes prefix and continuation, uniform over the points where both fit (end excluded)."""
    lowest, highest = max(1, length - targets_length), min(length - 1, inputs_length)
    return int(rng.integers(lowest, highest + 1))


def window_blocks(tokens_T: np.ndarray, most: int) -> list[np.ndarray]:
    """The tokens as windows of at most `most`, those of one size together. [windows, size] each

    No token is lost but a text's only one, which leaves nothing to tell it by.
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
    inputs_length: int | None, targets_length: int | None, noise_density: float, mean_span: float, sentinels: int
) -> tuple[int, bool]:
    """Tokens of a window, and whether it is shorter than the features because spans would outnumber the sentinels.

    Without lengths only the sentinels count.
    """
    if inputs_length is not None and targets_length is not None:
        lengths = inputs_length, targets_length
        longest, window = (window_length(*lengths, noise_density, mean_span, most) for most in (None, sentinels))
        return window, window < longest
    most = int((sentinels + 0.5) * mean_span / noise_density) + 2  # more would round to more spans
    window = window_length(most, most, noise_density, mean_span, sentinels)
    return window, True


@example_fn
def span_corruption(
    example: Example, context: Context, *, noise_density: float = 0.15, mean_span_length: float = 3.0
) -> list[Example]:
    """The tokens 'targets' of a text as span-corrupted 'inputs' and 'targets', an example per window."""
    lengths, vocabulary = context.feature_lengths, context.vocabulary
    most, shortened = span_window(
        lengths.get('inputs'), lengths.get('targets'), noise_density, mean_span_length, vocabulary.sentinel_count
    )
    made = []
    for block_NT in window_blocks(example['targets'], most):
        masks_NT = noise_masks(block_NT.shape[1], noise_density, mean_span_length, len(block_NT), context.rng)
        rows = zip(*corrupt_rows(block_NT, masks_NT, vocabulary))
        note = {'few_sentinels': True} if shortened and block_NT.shape[1] == most else {}
        made += [{'inputs': inputs_I, 'targets': targets_O, **note} for inputs_I, targets_O in rows]
    return made


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
        {'targets': window_T}
        for window_T in windows(tokens_T, max(2, context.feature_lengths.get('targets', len(tokens_T))))
    ]


# -- Denoisers: one of UL2's mixture, with its mode token ----------------------------------------------------------------


def target_bounds(length: int, noise_density: float) -> tuple[int, int]:
    """Fewest and most tokens of an S-denoiser's target: `noise_density` of the text on average, each number as likely.

    >>> target_bounds(100, 0.25)
    (1, 49)
    """
    middle = min(max(round(length * noise_density), 1), length - 1)
    reach = min(middle, length - middle) - 1
    return middle - reach, middle + reach


@functools.cache
def denoiser_window(
    denoiser: Denoiser, inputs: int | None, targets: int | None, mode: int, sentinels: int
) -> tuple[int, bool]:
    """Tokens of a window, and whether the sentinels made it shorter.

    Args:
        inputs: length of the feature, the end of sequence included; None where it is unknown.
        targets: the same.
        mode: tokens in front of the inputs.

    Raises:
        UserError: no text fits.
    """
    if denoiser.kind in ('R', 'X'):
        room = inputs if inputs is None else inputs - mode
        return span_window(room, targets, denoiser.noise_density, denoiser.mean_span, sentinels)
    if inputs is None or targets is None:
        return 1_000_000, False
    if denoiser.kind == 'C':
        fits = lambda length: inputs > mode and length < targets
    else:
        bounds = functools.partial(target_bounds, noise_density=denoiser.noise_density)
        fits = lambda length: bounds(length)[1] < targets and length - bounds(length)[0] + mode < inputs
    shortest = 2 if denoiser.kind == 'S' else 1
    for length in range(inputs + targets, shortest - 1, -1):
        if fits(length):
            return length, False
    raise UserError(
        f'Denoiser {denoiser.name!r} of kind {denoiser.kind} fits no text in inputs of {inputs} and targets of {targets} tokens. '
        'Set larger DataConfig.feature_lengths.'
    )


def mode_ids(denoiser: Denoiser, vocabulary: Vocabulary, optional: Sequence[str] = ()) -> list[int]:
    """The mode token as ids: one, or none.

    Args:
        optional: mode tokens of the whole mixture: a vocabulary with none of them is trained without.

    Raises:
        UserError: the vocabulary lacks it.
    """
    if not denoiser.mode_token or (optional and not set(optional) & set(vocabulary.mode_tokens)):
        return []
    if denoiser.mode_token not in vocabulary.mode_tokens:
        raise UserError(
            f'Denoiser {denoiser.name!r}: the vocabulary has no mode token {denoiser.mode_token!r}, it has '
            f"{', '.join(vocabulary.mode_tokens) or 'none'}. Set Denoiser.mode_token='' or DataConfig.mode_tokens in your .gin."
        )
    return [vocabulary.mode_token_id(denoiser.mode_token)]


@example_fn
def denoise(
    example: Example, context: Context, *, denoiser: Denoiser, optional_modes: Sequence[str] = ()
) -> list[Example]:
    """The tokens 'targets' of a text as a denoiser's 'inputs' and 'targets', both ended, an example per window.

    R and X replace spans as `span_corruption` does; S cuts a window in two; C has nothing but the mode token as input. Where
    spans would outnumber the vocabulary's sentinels, windows are cut shorter, which keeps density and span length: such an
    example says so ('few_sentinels').

    Example, kind R, mode token [NLU]: 'a b c d e f' -> '[NLU] a <extra_id_0> d e <extra_id_1> </s>',
    '<extra_id_0> b c <extra_id_1> f </s>'; kind S, mode token [S2S]: '[S2S] a b c d </s>', 'e f </s>'.
    """
    vocabulary, lengths = context.vocabulary, context.feature_lengths
    mode = mode_ids(denoiser, vocabulary, optional_modes)
    features = lengths.get('inputs'), lengths.get('targets')
    most, shortened = denoiser_window(denoiser, *features, len(mode), vocabulary.sentinel_count)
    tokens_T = np.asarray(example['targets'], np.int32)
    if denoiser.kind == 'C':
        inputs_I = np.array([*mode, vocabulary.eos_id], np.int32)
        texts = [window_T for window_T in windows(tokens_T, most) if len(window_T)]
        return [{'inputs': inputs_I, 'targets': _ended(text_T[None], (), vocabulary.eos_id)[0]} for text_T in texts]
    made: list[Example] = []
    for block_NT in window_blocks(tokens_T, most):
        if denoiser.kind == 'S':
            made += _continued(block_NT, denoiser.noise_density, mode, vocabulary.eos_id, context.rng)
            continue
        rows, size = block_NT.shape
        noise_NT = noise_masks(size, denoiser.noise_density, denoiser.mean_span, rows, context.rng, denoiser.anywhere)
        inputs_NI, targets_NO = corrupt_rows(block_NT, noise_NT, vocabulary)
        inputs_NI, targets_NO = _ended(inputs_NI, mode, vocabulary.eos_id), _ended(targets_NO, (), vocabulary.eos_id)
        note = {'few_sentinels': True} if shortened and size == most else {}
        made += [
            {'inputs': inputs_I, 'targets': targets_O, **note} for inputs_I, targets_O in zip(inputs_NI, targets_NO)
        ]
    return made


def _ended(tokens_NT: np.ndarray, before: Sequence[int], eos_id: int) -> np.ndarray:
    made = np.empty((len(tokens_NT), len(before) + tokens_NT.shape[1] + 1), np.int32)
    made[:, : len(before)], made[:, len(before) : -1], made[:, -1] = before, tokens_NT, eos_id
    return made


def _continued(
    block_NT: np.ndarray, noise_density: float, mode: Sequence[int], eos_id: int, rng: np.random.Generator
) -> list[Example]:
    """S: each window cut in two where its own random number says."""
    rows, size = block_NT.shape
    fewest, most = target_bounds(size, noise_density)
    made = []
    for tokens_T, targets in zip(block_NT, rng.integers(fewest, most + 1, rows).tolist()):
        inputs_1I = _ended(tokens_T[None, : size - targets], mode, eos_id)
        made.append({'inputs': inputs_1I[0], 'targets': _ended(tokens_T[None, size - targets :], (), eos_id)[0]})
    return made
