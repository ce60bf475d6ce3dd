"""Preprocessors over single examples: the same function serves the fast path (plain Python) and SeqIO (tf.data).

    @example_fn
    def translate(example, context):
        return {"inputs": "translate: " + example["english"], "targets": example["french"]}

    seqio.TaskRegistry.add("translate", source=IndexedSource(...), preprocessors=[translate, tokenize, append_eos], ...)

A function returns the new example, None to leave it out, or a list of examples.
"""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.config import InstructionConfig
from t5flan.errors import UserError

Example = dict[str, Any]
Result = Example | list[Example] | None


class Context:
    """What a preprocessor may know besides the example: never a clock, a global generator or the order of calls.

    Attributes:
        vocabulary: the run's vocabulary (None where only text is made).
        feature_lengths: tokens of each feature, {} where unknown.
        instructions: how instruction tasks are put into words.
        format: 'encoder_decoder', or a decoder-only row's 'prefix_lm' or 'causal_lm'.
        key: (seed, task, split, index, epoch), which alone decides `rng`.
    """

    __slots__ = ('vocabulary', 'feature_lengths', 'instructions', 'format', 'key', '_rng')

    def __init__(
        self,
        vocabulary: Any = None,
        feature_lengths: Mapping[str, int] | None = None,
        *,
        seed: int = 0,
        task: str = '',
        split: str = 'train',
        index: int = 0,
        epoch: int = 0,
        instructions: InstructionConfig = InstructionConfig(),
        format: str = 'encoder_decoder',
    ) -> None:
        self.vocabulary = vocabulary
        self.feature_lengths = feature_lengths or {}
        self.instructions = instructions
        self.format = format
        self.key = (seed, task, split, index, epoch)
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """Random numbers of this example in this epoch, the same on every machine; made when first asked for."""
        if self._rng is None:
            seed, task, split, index, epoch = self.key
            self._rng = _generator(stable_hash(f'{seed}/{task}/{split}/{index}/{epoch}'))
        return self._rng


class _NoEntropy(np.random.bit_generator.ISeedSequence):
    """Seeds a bit generator with zeros, for one whose state is set next."""

    _ZEROS = np.zeros(2, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._ZEROS


_NO_ENTROPY, _COUNTER = _NoEntropy(), np.zeros(4, np.uint64)


def _generator(key: int) -> np.random.Generator:
    """Generator(Philox(key=key)) in half the time, which there goes to asking the system for entropy and not using it."""
    philox = np.random.Philox(_NO_ENTROPY)
    philox.state = {
        'bit_generator': 'Philox',
        'state': {'counter': _COUNTER, 'key': np.array([key, 0], np.uint64)},
        'buffer': _COUNTER,
        'buffer_pos': 4,
        'has_uint32': 0,
        'uinteger': 0,
    }
    return np.random.Generator(philox)


def stable_hash(text: str | bytes) -> int:
    """A 64-bit number that depends on the text alone (Python's own hash changes from process to process)."""
    data = text.encode('utf-8', 'surrogatepass') if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')


class ExampleFn:
    """A preprocessor of one example; called with a tf.data.Dataset it is a SeqIO preprocessor."""

    def __init__(self, function: Callable[..., Result], **options: Any) -> None:
        self.function = function
        self.options = options
        self.__name__ = getattr(function, '__name__', type(self).__name__)
        self.__doc__ = function.__doc__

    def bind(self, **options: Any) -> 'ExampleFn':
        """The same preprocessor with keyword arguments set."""
        return type(self)(self.function, **{**self.options, **options})

    def before_cache(self) -> 'ExampleFn':
        """The same, as SeqIO wants it before a CacheDatasetPlaceholder: it takes no lengths and no random numbers."""
        made = copy.copy(self)
        made.__signature__ = inspect.Signature([p for p in self.__signature__.parameters.values() if p.name != 'sequence_length'])
        return made

    def apply(self, example: Example, context: Context) -> Result:
        return self.function(example, context, **self.options)

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Many examples at once; where that is faster (tokenization), a subclass says how."""
        return [self.apply(example, context) for example, context in zip(examples, contexts, strict=True)]

    def __call__(self, dataset: Any, sequence_length: Mapping[str, int] | None = None, output_features: Any = None) -> Any:
        """SeqIO's form: a tf.data.Dataset in, a tf.data.Dataset out (in Python, one example at a time)."""
        from t5flan.data import seqio_bridge

        return seqio_bridge.map_dataset(self, dataset, sequence_length or {}, output_features)

    # SeqIO reads the arguments it may pass from the signature.
    __signature__ = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)
            for name, default in (('dataset', inspect.Parameter.empty), ('sequence_length', None), ('output_features', None))
        ]
    )

    def __repr__(self) -> str:
        return f'{self.__name__}({", ".join(f"{k}={v!r}" for k, v in self.options.items())})'


def example_fn(function: Callable[..., Result]) -> ExampleFn:
    """Makes a preprocessor of `function(example, context, **options)`."""
    return ExampleFn(function)


def as_list(result: Result) -> list[Example]:
    """What a preprocessor returned, as the list of examples it stands for."""
    if result is None:
        return []
    return result if isinstance(result, list) else [result]


def run_block(functions: Sequence[ExampleFn], examples: Sequence[Example], contexts: Sequence[Context]) -> list[list[Example]]:
    """Runs preprocessors one after the other over a block of examples.

    Returns:
        For each example the list of examples it became.
    """
    sources = list(range(len(examples)))  # which of the given examples each present one came from
    present, present_contexts = list(examples), list(contexts)
    for function in functions:
        results = function.apply_block(present, present_contexts)
        if all(type(result) is dict for result in results):
            present = results
            continue
        expanded = [
            (source, context, new)
            for source, context, result in zip(sources, present_contexts, results)
            for new in as_list(result)
        ]
        sources, present_contexts, present = [list(column) for column in zip(*expanded)] if expanded else ([], [], [])
    made: list[list[Example]] = [[] for _ in examples]
    for source, example in zip(sources, present):
        made[source].append(example)
    return made


class JoinDocuments(ExampleFn):
    """Where a task's tokenized documents are joined: DataConfig.concatenate of them become one text, which is cut afterwards.

    Joined are records that stand beside each other in the source, always the same ones, so that a run goes on anywhere and on
    any number of hosts alike. Read through SeqIO's own get_dataset every document stays by itself.
    """

    def __init__(self) -> None:
        super().__init__(lambda example, context: example)
        self.__name__ = 'join_documents'

    @staticmethod
    def join(documents: Sequence[Example]) -> Example:
        """Several documents as one. Nothing but their tokens is kept."""
        if len(documents) == 1:
            return documents[0]
        return {'targets': np.concatenate([document['targets'] for document in documents])}


join_documents = JoinDocuments()


def joined_by(functions: Sequence[ExampleFn] | None, concatenate: int) -> int:
    """How many records are one example of these preprocessors."""
    return concatenate if any(isinstance(function, JoinDocuments) for function in functions or ()) else 1


def run_joined(
    functions: Sequence[ExampleFn], groups: Sequence[Sequence[Example]], contexts: Sequence[Context]
) -> list[list[Example]]:
    """As run_block, for groups of records that are joined where the preprocessors have a JoinDocuments; a context a group."""
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


def require_field(example: Example, field: str, where: str, setting: str) -> str:
    """The text of a field.

    Raises:
        UserError: it is missing (the line names those there) or not text.
    """
    if field not in example:
        raise UserError(f"{where}: no field '{field}'; the fields are {', '.join(map(str, example)) or 'none'}. Set {setting}.")
    value = example[field]
    if not isinstance(value, str):
        raise UserError(
            f"{where}: field '{field}' is {type(value).__name__} ({str(value)[:40]}), it must be text. Mend the file or "
            f'set {setting}.'
        )
    try:
        value.encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: field '{field}' holds half a character (a lone surrogate \\ud800-\\udfff). Mend the file."
        ) from None
    return value
