"""Joining documents of raw text before they are cut into windows (DataConfig.concatenate)."""

from collections.abc import Sequence

import numpy as np

from t5flan.data.preprocessing.controls import PREFIX, PREFIX_LOSS_WEIGHTS, has_marker
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, run_block
from t5flan.data.preprocessing.features import NO_TOKENS
from t5flan.data.vocabulary.vocabulary import Vocabulary


class JoinDocuments(ExampleFn):
    """Marks where DataConfig.concatenate tokenized documents are joined into one text.

    Neighbouring records of the source are joined, always the same ones, so a run is the same on any number of hosts and
    after a restart. SeqIO's own get_dataset does not join documents.
    """

    def __init__(self) -> None:
        super().__init__(lambda example, context: example)
        self.__name__ = 'join_documents'

    @staticmethod
    def join(documents: Sequence[Example], vocabulary: Vocabulary) -> list[Example]:
        """Joins documents into one example, which has only their tokens.

        A document with a control token, or with a marker in its text, stays by itself: the token governs no other text
        (controls.py).
        """
        if len(documents) == 1:
            return [*documents]
        is_apart = [len(document.get(PREFIX, ())) > 0 for document in documents]
        if has_marker(tokens_T := _joined(documents, is_apart), vocabulary):
            marked = (has_marker(document['targets'], vocabulary) for document in documents)
            is_apart = [one or two for one, two in zip(is_apart, marked)]
            tokens_T = _joined(documents, is_apart)
        empty = {name: NO_TOKENS for name in (PREFIX, PREFIX_LOSS_WEIGHTS) if name in documents[0]}
        joined = [] if all(is_apart) else [{'targets': tokens_T, **empty}]
        return joined + [document for document, apart in zip(documents, is_apart) if apart]


def _joined(documents: Sequence[Example], is_apart: Sequence[bool]) -> np.ndarray:
    """The tokens of the documents that are not kept apart."""
    tokens = [document['targets'] for document, apart in zip(documents, is_apart) if not apart]
    return np.concatenate(tokens) if tokens else NO_TOKENS


join_documents = JoinDocuments()


def joined_by(functions: Sequence[ExampleFn] | None, concatenate: int) -> int:
    """Number of records that these preprocessors join into one text."""
    return concatenate if any(isinstance(function, JoinDocuments) for function in functions or ()) else 1


def run_joined(
    functions: Sequence[ExampleFn], groups: Sequence[Sequence[Example]], contexts: Sequence[Context]
) -> list[list[Example]]:
    """Like run_block, for groups of records that JoinDocuments joins; there is one context per group."""
    place = next(i for i, function in enumerate(functions) if isinstance(function, JoinDocuments))
    records = [record for group in groups for record in group]
    whose = [context for group, context in zip(groups, contexts, strict=True) for _ in group]
    documents = iter(run_block(functions[:place], records, whose))
    joined = [[document for _ in group for document in next(documents)] for group in groups]
    join = lambda i: JoinDocuments.join(joined[i], contexts[i].vocabulary)
    texts = [(i, text) for i, group in enumerate(joined) if group for text in join(i)]
    done = run_block(functions[place + 1 :], [text for _, text in texts], [contexts[i] for i, _ in texts])
    made: list[list[Example]] = [[] for _ in groups]
    for (i, _), examples in zip(texts, done, strict=True):
        made[i] += examples
    return made
