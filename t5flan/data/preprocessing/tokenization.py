"""Text features to token ids, and the end of sequence after them."""

from collections.abc import Sequence

import numpy as np

from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result, example_fn


class Tokenize(ExampleFn):
    """Encodes the text of 'inputs' and 'targets'; the text stays as 'inputs_pretokenized', as in SeqIO."""

    FEATURES = ('inputs', 'targets')

    def __init__(self) -> None:
        super().__init__(self.apply)
        self.__name__ = 'tokenize'

    def apply(self, example: Example, context: Context) -> Result:
        return self.apply_block([example], [context])[0]

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        if not examples:
            return []
        vocabulary = contexts[0].vocabulary
        made = [dict(example) for example in examples]
        for feature in self.FEATURES:
            rows = [i for i, example in enumerate(examples) if isinstance(example.get(feature), (str, bytes))]
            texts = [examples[i][feature] for i in rows]
            texts = [text.decode('utf-8') if isinstance(text, bytes) else text for text in texts]
            for i, text, ids in zip(rows, texts, vocabulary.encode_batch(texts) if texts else ()):
                made[i][f'{feature}_pretokenized'] = text
                made[i][feature] = np.array(ids, np.int32)
        return made


tokenize = Tokenize()


@example_fn
def append_eos(example: Example, context: Context) -> Result:
    """Ends inputs and targets with the end of sequence, as T5 does.

    An example longer than the features is cut by the pipeline, which counts it: cut targets then have no end, so that no
    model learns to stop in the middle.
    """
    eos = np.array([context.vocabulary.eos_id], np.int32)
    return {**example, **{f: np.concatenate([example[f], eos]) for f in Tokenize.FEATURES if f in example}}
