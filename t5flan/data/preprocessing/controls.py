"""Control tokens: the score of a text as a token in front of it (PaLM 2, arXiv:2305.10403, section 5).

    {'text': 'Have a nice day.', 'toxicity': 0.02}  ->  [TOX_LOW] Have a nice day.

The model learns which text follows each token; at inference a token requests such text. T5's spans of noise never
include a window's first token, so the control token stays in the inputs.
"""

import bisect

import numpy as np

from t5flan.data.corpus_config import Control
from t5flan.data.preprocessing.examples import Context, Example, example_fn
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError


def token_of(score: float, control: Control) -> str:
    """The control token for a score.

    >>> token_of(0.5, Control('toxicity', ('[LOW]', '[HIGH]'), (0.5,)))
    '[HIGH]'
    """
    return control.tokens[bisect.bisect_right(control.thresholds, score)]


@example_fn
def control_token(example: Example, context: Context, *, control: Control) -> Example:
    """Puts the control token for its score in front of the tokens 'targets', for the configured share of the texts.

    A hash of the text decides whether it gets the token: the same in every epoch, on every host and with any seed.

    Raises:
        UserError: the vocabulary lacks the token.
    """
    text = example['targets_pretokenized']
    if stable_hash(f'{control.field}/{text}') >= control.share * 2**64:
        return example
    token, vocabulary = token_of(example[control.field], control), context.vocabulary
    if token not in vocabulary.control_tokens:
        known = ', '.join(vocabulary.control_tokens) or 'none'
        problem = f'Control {control.field!r}: the vocabulary has no token {token!r}, it has {known}'
        raise UserError(f'{problem}. Set Control.tokens or DataConfig.mode_tokens in your .gin.')
    tokens_T = np.concatenate([np.array([vocabulary.mode_token_id(token)], np.int32), example['targets']])
    return {**example, 'targets': tokens_T}
