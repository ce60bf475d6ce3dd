"""UL2's denoisers (arXiv:2205.05131): span corruption, sequential and causal denoising, with mode tokens.

Worked example, the text 'a b c d e f':

    kind  inputs                      targets
    R, X  [NLU] a <0> d e <1> </s>    <0> b c <1> f </s>    spans replaced, as in denoising.py
    S     [S2S] a b c d </s>          e f </s>              the text continued
    C     [NLG] </s>                  a b c d e f </s>      the text from nothing
"""

import functools
from collections.abc import Sequence

import numpy as np

from t5flan.data.corpus_config import Denoiser
from t5flan.data.preprocessing.controls import pieces
from t5flan.data.preprocessing.denoising import corrupt_rows, noise_masks, span_window, window_blocks, windows
from t5flan.data.preprocessing.examples import Context, Example, example_fn
from t5flan.data.vocabulary.vocabulary import HOW_TO_ADD, Vocabulary
from t5flan.errors import UserError


def target_bounds(length: int, noise_density: float) -> tuple[int, int]:
    """Fewest and most tokens of an S-denoiser's target, drawn evenly: `noise_density` of the text on average.

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
    """Tokens of a window, and whether the number of sentinels made it shorter.

    Args:
        inputs: length of the feature, end of sequence included; None if unknown.
        mode: number of mode and control tokens in front of the inputs.
        sentinels: number of sentinels of the vocabulary.

    Raises:
        UserError: no text fits.
    """
    if denoiser.kind in ('R', 'X'):
        room = inputs if inputs is None else inputs - mode
        return span_window(room, targets, *_spans(denoiser), sentinels)
    if inputs is None or targets is None:
        return 1_000_000, False
    for length in range(inputs + targets, 0 if denoiser.kind == 'C' else 1, -1):
        fewest, most = (length, length) if denoiser.kind == 'C' else target_bounds(length, _density(denoiser))
        if most < targets and length - fewest + mode < inputs:
            return length, False
    problem = f'no text fits in inputs of {inputs} and targets of {targets} tokens'
    fix = 'Set larger DataConfig.feature_lengths.'
    raise UserError(f'Denoiser {denoiser.name!r} of kind {denoiser.kind}: {problem}. {fix}')


def _density(denoiser: Denoiser) -> float:
    assert denoiser.noise_density is not None, 'only kind C has none'
    return denoiser.noise_density


def _spans(denoiser: Denoiser) -> tuple[float, float]:
    """Noise density and mean span length of kinds R and X."""
    assert denoiser.mean_span is not None, 'only kinds S and C have none'
    return _density(denoiser), denoiser.mean_span


def mode_ids(denoiser: Denoiser, vocabulary: Vocabulary, optional: Sequence[str] = ()) -> list[int]:
    """The ids of the mode token: one, or none.

    Args:
        optional: all mode tokens of the mixture; a vocabulary with none of them trains without.

    Raises:
        UserError: the vocabulary lacks it.
    """
    if not denoiser.mode_token or (optional and not set(optional) & set(vocabulary.control_tokens)):
        return []
    if denoiser.mode_token not in vocabulary.control_tokens:
        known = ', '.join(vocabulary.control_tokens) or 'none'
        problem = f'the vocabulary has no mode token {denoiser.mode_token!r}, it has {known}'
        fix = f"Set Denoiser.mode_token='' or {HOW_TO_ADD.removeprefix('Set ')}"
        raise UserError(f'Denoiser {denoiser.name!r}: {problem}. {fix}')
    return [vocabulary.mode_token_id(denoiser.mode_token)]


@example_fn
def denoise(
    example: Example, context: Context, *, denoiser: Denoiser, optional_modes: Sequence[str] = ()
) -> list[Example]:
    """Turns the tokens 'targets' of a text into a denoiser's 'inputs' and 'targets', one example per window.

    Both end with end of sequence. The inputs begin with the mode token, then the text's control tokens and markers,
    none of which is ever noise (controls.py). Where spans would outnumber the vocabulary's sentinels, windows are
    shorter, which keeps density and span length; such examples are marked with 'few_sentinels'.
    """
    mode = mode_ids(denoiser, context.vocabulary, optional_modes)
    parts = pieces(example, context.vocabulary)
    return [
        one
        for prefix_P, tokens_T in parts
        for one in _denoised(tokens_T, denoiser, [*mode, *prefix_P.tolist()], context)
    ]


def _denoised(tokens_T: np.ndarray, denoiser: Denoiser, mode: Sequence[int], context: Context) -> list[Example]:
    """The examples of a text without markers, each with `mode` in front of its inputs."""
    vocabulary, lengths = context.vocabulary, context.feature_lengths
    features = lengths.get('inputs'), lengths.get('targets')
    most, shortened = denoiser_window(denoiser, *features, len(mode), vocabulary.sentinel_count)
    if denoiser.kind == 'C':
        inputs_I = np.array([*mode, vocabulary.eos_id], np.int32)
        texts = [window_T for window_T in windows(tokens_T, most) if len(window_T)]
        return [{'inputs': inputs_I, 'targets': _ended(text_T[None], (), vocabulary.eos_id)[0]} for text_T in texts]
    made: list[Example] = []
    for block_NT in window_blocks(tokens_T, most):
        if denoiser.kind == 'S':
            made += _continued(block_NT, _density(denoiser), mode, vocabulary.eos_id, context.rng)
            continue
        rows, size = block_NT.shape
        noise_NT = noise_masks(size, *_spans(denoiser), rows, context.rng, denoiser.anywhere)
        inputs_NI, targets_NO = corrupt_rows(block_NT, noise_NT, vocabulary)
        inputs_NI, targets_NO = _ended(inputs_NI, mode, vocabulary.eos_id), _ended(targets_NO, (), vocabulary.eos_id)
        note = {'few_sentinels': True} if shortened and size == most else {}
        pairs = zip(inputs_NI, targets_NO)
        made += [{'inputs': inputs_I, 'targets': targets_O, **note} for inputs_I, targets_O in pairs]
    return made


def _ended(tokens_NT: np.ndarray, before: Sequence[int], eos_id: int) -> np.ndarray:
    """Rows of tokens with `before` in front and end of sequence behind."""
    made = np.empty((len(tokens_NT), len(before) + tokens_NT.shape[1] + 1), np.int32)
    made[:, : len(before)], made[:, len(before) : -1], made[:, -1] = before, tokens_NT, eos_id
    return made


def _continued(
    block_NT: np.ndarray, noise_density: float, mode: Sequence[int], eos_id: int, rng: np.random.Generator
) -> list[Example]:
    """Kind S: each window split in two at a random point."""
    size = block_NT.shape[1]
    fewest, most = target_bounds(size, noise_density)
    made = []
    for tokens_T, targets in zip(block_NT, rng.integers(fewest, most + 1, len(block_NT)).tolist()):
        inputs_1I = _ended(tokens_T[None, : size - targets], mode, eos_id)
        made.append({'inputs': inputs_1I[0], 'targets': _ended(tokens_T[None, size - targets :], (), eos_id)[0]})
    return made
