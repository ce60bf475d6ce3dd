"""Control tokens: the score of a text as a token in front of it (PaLM 2, arXiv:2305.10403, section 5).

    {'text': 'Have a nice day.', 'toxicity': 0.02}  ->  [TOX_LOW] Have a nice day.

The model learns which text follows each token; at inference a token requests such text. So the token must be given and
never predicted, and it must govern its own text alone:

- It is no part of the tokens that the objectives cut and mask. It travels beside them, as 'prefix', and each objective
  puts it in front of the inputs (behind a mode token), in every window of the document: a window without it would be
  one more untagged text.
- A tagged document is never joined with others (joining.py). PaLM 2 tags a small share of its texts, so joining has
  little to gain there, and a token in the middle of a window would need an end as well.
- A marker that is spelled in a text (a mode token, or a special token of a tokenizer.json) starts a new piece in the
  same way: `pieces`.
"""

import bisect
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5flan.data.corpus_config import Control
from t5flan.data.preprocessing.examples import Context, Example, example_fn
from t5flan.data.preprocessing.features import NO_TOKENS
from t5flan.data.randomness import stable_hash
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

PREFIX = 'prefix'
"""The ids that stand in front of each window of a document, int32 [P]."""
PREFIX_LOSS_WEIGHTS = 'prefix_loss_weights'
"""Their loss weights where they are targets (causal LM), float32 [P]."""


def token_of(score: float, control: Control) -> str:
    """The control token for a score.

    >>> token_of(0.5, Control('toxicity', ('[LOW]', '[HIGH]'), (0.5,)))
    '[HIGH]'
    """
    return control.tokens[bisect.bisect_right(control.thresholds, score)]


@example_fn
def control_token(example: Example, context: Context, *, control: Control) -> Example:
    """Gives the configured share of the texts the control token for their score, behind those of earlier controls.

    A hash of the text decides whether it gets the token: the same in every epoch, on every host and with any seed.
    Every text gets the features, which are empty without a token: SeqIO needs examples of one structure.

    Raises:
        UserError: the vocabulary lacks the token.
    """
    text = example['targets_pretokenized']
    before = {name: example.get(name, NO_TOKENS) for name in (PREFIX, PREFIX_LOSS_WEIGHTS)}
    if stable_hash(f'{control.field}/{text}') >= control.share * 2**64:
        return {**example, **_prefix(before, (), ())}
    token, vocabulary = token_of(example[control.field], control), context.vocabulary
    if token not in vocabulary.control_tokens:
        known = ', '.join(vocabulary.control_tokens) or 'none'
        problem = f'Control {control.field!r}: the vocabulary has no token {token!r}, it has {known}'
        raise UserError(f'{problem}. Set Control.tokens or DataConfig.mode_tokens in your .gin.')
    return {**example, **_prefix(before, [vocabulary.mode_token_id(token)], [control.loss_weight])}


def _prefix(before: Mapping[str, np.ndarray], ids: Any, weights: Any) -> Example:
    """The features with more ids."""
    return {
        PREFIX: np.array([*before[PREFIX], *ids], np.int32),
        PREFIX_LOSS_WEIGHTS: np.array([*before[PREFIX_LOSS_WEIGHTS], *weights], np.float32),
    }


def has_marker(tokens_T: np.ndarray, vocabulary: Vocabulary) -> bool:
    """Whether a marker is among the tokens."""
    markers = vocabulary.marker_ids  # the largest ids of most vocabularies, so that the maximum tells
    is_possible = len(markers) > 0 and len(tokens_T) > 0 and tokens_T.max() >= markers[0]
    return is_possible and bool(np.isin(tokens_T, markers).any())


def pieces(example: Example, vocabulary: Vocabulary) -> list[tuple[np.ndarray, np.ndarray]]:
    """The tokens 'targets' of a text without its markers, in order, and the markers that govern them.

        [TOX_LOW]; a b [S2S] c d  ->  ([TOX_LOW], a b), ([TOX_LOW] [S2S], c d)

    Returns:
        Pairs of int32 [P] ids that stand in front of each window, and int32 [T] tokens, any of which may be noise.
        Markers at the end of a text, which govern nothing, are left out.
    """
    prefix_P, tokens_T = example.get(PREFIX, NO_TOKENS), np.asarray(example['targets'], np.int32)
    if not has_marker(tokens_T, vocabulary):
        return [(prefix_P, tokens_T)]
    is_marker_T = np.isin(tokens_T, vocabulary.marker_ids)
    edges = np.flatnonzero(is_marker_T[1:] != is_marker_T[:-1]) + 1
    found, here_P = [], prefix_P
    for part_T, is_marker in zip(np.split(tokens_T, edges), is_marker_T[[0, *edges]]):
        if is_marker:
            here_P = np.concatenate([prefix_P, part_T])
        else:
            found.append((here_P, part_T))
    return found
