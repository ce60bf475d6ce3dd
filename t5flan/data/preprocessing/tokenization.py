"""Tokenizes text features and appends end of sequence."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result, example_fn
from t5flan.data.preprocessing.features import STARTED
from t5flan.data.vocabulary.prompt_format import answer_ids, fitting_prompt_ids


class Tokenize(ExampleFn):
    """Encodes the text of 'inputs' and 'targets'; the text stays as 'inputs_pretokenized', as in SeqIO."""

    FEATURES = ('inputs', 'targets')

    def __init__(self) -> None:
        super().__init__(self.apply)
        self.__name__ = 'tokenize'

    def apply(self, example: Example, context: Context) -> Result:
        """Tokenizes one example."""
        return self.apply_block([example], [context])[0]

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Tokenizes all texts of a feature at once."""
        if not examples:
            return []
        vocabulary = contexts[0].vocabulary
        made: list[Any] = [dict(example) for example in examples]
        for feature in self.FEATURES:
            rows = [i for i, example in enumerate(examples) if isinstance(example.get(feature), (str, bytes))]
            texts = [examples[i][feature] for i in rows]
            texts = [text.decode('utf-8') if isinstance(text, bytes) else text for text in texts]
            for i, text, ids in zip(rows, texts, vocabulary.encode_arrays(texts) if texts else ()):
                made[i][f'{feature}_pretokenized'] = text
                made[i][feature] = ids
        return made


tokenize = Tokenize()


@example_fn
def append_eos(example: Example, context: Context) -> Result:
    """Appends end of sequence to inputs and targets, as in T5, or joins them as InstructionConfig.prompt_format says.

    The pipeline trims examples that are longer than the features, and counts them. Trimmed targets lose their end of
    sequence, so that no model learns to stop in the middle. A prompt in another format than 'plain' loses the end of
    its text, and keeps what the format writes after it.
    """
    prompt_format, vocabulary = context.instructions.prompt_format, context.vocabulary
    if prompt_format != 'plain' and all(f'{name}_pretokenized' in example for name in Tokenize.FEATURES):
        inputs, targets = (example[f'{name}_pretokenized'] for name in Tokenize.FEATURES)
        limit = context.feature_lengths.get('inputs') or sys.maxsize
        prompt, is_cut = fitting_prompt_ids(vocabulary, inputs, prompt_format, limit)
        answer = answer_ids(vocabulary, inputs, targets, prompt_format)
        joined = {'inputs': np.array(prompt, np.int32), 'targets': np.array(answer, np.int32)}
        marks = ({STARTED: True} if prompt_format == 'chat' else {}) | ({'shortened': True} if is_cut else {})
        return {**example, **joined, **marks}
    eos = np.array([vocabulary.eos_id], np.int32)
    return {**example, **{f: np.concatenate([example[f], eos]) for f in Tokenize.FEATURES if f in example}}
