"""Joining documents of raw text before they are cut into windows (DataConfig.concatenate)."""

from collections.abc import Sequence

import numpy as np

from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, run_block


class JoinDocuments(ExampleFn):
    """Marks where DataConfig.concatenate tokenized documents are joined into one text.

    Neighbouring records of the source are joined, always the same ones, so a run is the same on any number of hosts and
    after a restart. SeqIO's own get_dataset does not join documents.
    """

    def __init__(self) -> None:
        super().__init__(lambda example, context: example)
        self.__name__ = 'join_documents'

    @staticmethod
    def join(documents: Sequence[Example]) -> Example:
        """Joins documents into one example, which has only their tokens."""
        if len(documents) == 1:
            return documents[0]
        return {'targets': np.concatenate([document['targets'] for document in documents])}


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
    kept = [i for i, group in enumerate(joined) if group]
    done = run_block(functions[place + 1 :], [JoinDocuments.join(joined[i]) for i in kept], [contexts[i] for i in kept])
    made: list[list[Example]] = [[] for _ in groups]
    for i, examples in zip(kept, done, strict=True):
        made[i] = examples
    return made
