"""Preprocessors of single examples: one function serves the fast path (plain Python) and SeqIO (tf.data).

    @example_fn
    def translate(example, context):
        return {"inputs": "translate: " + example["english"], "targets": example["french"]}

    seqio.TaskRegistry.add("translate", source=IndexedSource(...), preprocessors=[translate, tokenize, append_eos], ...)

A function returns the new example, None to drop it, or a list of examples.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.randomness import generator, stable_hash
from t5flan.errors import UserError

Example = dict[str, Any]
Result = Example | list[Example] | None
_DEFAULT_INSTRUCTIONS = InstructionConfig()


class Context:
    """What a preprocessor may use besides the example; its results never depend on time or on the order of calls.

    Attributes:
        vocabulary: the run's vocabulary; None if only text is made.
        feature_lengths: tokens of each feature; {} if unknown.
        instructions: how instruction tasks are worded.
        format: 'encoder_decoder', or 'prefix_lm' or 'causal_lm' for decoder-only rows.
        key: (seed, task, split, index, epoch), which determines `rng`.
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
        instructions: InstructionConfig = _DEFAULT_INSTRUCTIONS,
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
        """Random numbers of this example in this epoch, the same on every machine; made at the first use."""
        if self._rng is None:
            seed, task, split, index, epoch = self.key
            self._rng = generator(stable_hash(f'{seed}/{task}/{split}/{index}/{epoch}'))
        return self._rng


class ExampleFn:
    """A preprocessor of single examples; called with a tf.data.Dataset it is a SeqIO preprocessor."""

    def __init__(self, function: Callable[..., Result], **options: Any) -> None:
        self.function = function
        self.options = options
        self.__name__ = getattr(function, '__name__', type(self).__name__)
        self.__doc__ = function.__doc__

    def bind(self, **options: Any) -> 'ExampleFn':
        """A copy with keyword arguments set."""
        return type(self)(self.function, **{**self.options, **options})

    def before_cache(self) -> 'ExampleFn':
        """A copy that takes no lengths, as SeqIO requires before a CacheDatasetPlaceholder."""
        made = copy.copy(self)
        parameters = self.__signature__.parameters.values()
        made.__signature__ = inspect.Signature([p for p in parameters if p.name != 'sequence_length'])
        return made

    def apply(self, example: Example, context: Context) -> Result:
        """Preprocesses one example."""
        return self.function(example, context, **self.options)

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Preprocesses many examples; subclasses override it where a batch is faster (tokenization)."""
        return [self.apply(example, context) for example, context in zip(examples, contexts, strict=True)]

    def __call__(
        self, dataset: Any, sequence_length: Mapping[str, int] | None = None, output_features: Any = None
    ) -> Any:
        """As a SeqIO preprocessor: from tf.data.Dataset to tf.data.Dataset, one example at a time in Python."""
        return map_dataset(self, dataset, sequence_length or {})

    # SeqIO reads the arguments it may pass from the signature.
    __signature__ = inspect.signature(lambda dataset, sequence_length=None, output_features=None: None)

    def __repr__(self) -> str:
        return f'{self.__name__}({", ".join(f"{k}={v!r}" for k, v in self.options.items())})'


def example_fn(function: Callable[..., Result]) -> ExampleFn:
    """Turns `function(example, context, **options)` into a preprocessor."""
    return ExampleFn(function)


def as_list(result: Result) -> list[Example]:
    """A preprocessor's result as a list of examples."""
    return result if isinstance(result, list) else [] if result is None else [result]


def run_block(
    functions: Sequence[ExampleFn], examples: Sequence[Example], contexts: Sequence[Context]
) -> list[list[Example]]:
    """Runs preprocessors one after the other; returns the list of examples that each example became."""
    sources = list(range(len(examples)))  # the given example that each current one came from
    current: list[Any] = list(examples)
    current_contexts = list(contexts)
    for function in functions:
        results = function.apply_block(current, current_contexts)
        if all(type(result) is dict for result in results):
            current = results
            continue
        made_of = zip(sources, current_contexts, results)
        expanded = [(source, context, new) for source, context, result in made_of for new in as_list(result)]
        sources, current_contexts, current = [list(column) for column in zip(*expanded)] if expanded else ([], [], [])
    made: list[list[Example]] = [[] for _ in examples]
    for source, example in zip(sources, current):
        made[source].append(example)
    return made


def map_dataset(function: ExampleFn, dataset: Any, lengths: Mapping[str, int]) -> Any:
    """Applies `function` to a tf.data.Dataset; the first result determines the shapes and types."""
    import seqio
    import tensorflow as tf

    from t5flan.data.records.tf_values import plain_value, tensor_spec
    from t5flan.data.vocabulary.seqio_vocabulary import chosen_vocabulary_or_none

    vocabulary = chosen_vocabulary_or_none()
    seed = seqio.utils._NEXT_MAP_SEED or 0  # SeqIO's seed of this preprocessor, set by get_dataset(seed=…)

    def generate() -> Iterator[dict[str, Any]]:
        for index, example in enumerate(dataset.as_numpy_iterator()):
            context = Context(vocabulary, lengths, seed=int(seed), index=index)
            yield from as_list(function.apply({name: plain_value(value) for name, value in example.items()}, context))

    first = next(generate(), None)
    if first is None:
        raise UserError(f"preprocessor {function!r} dropped every example. Check the task's files and filters.")
    signature = {name: tensor_spec(value) for name, value in first.items()}
    return tf.data.Dataset.from_generator(generate, output_signature=signature)
