"""A checkpoint of any format as t5flan's parameters, read one layer at a time to save memory."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

from t5flan.conversion.names import Shape, all_pieces, shapes
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_axes

Key = TypeVar('Key')
Piece = tuple[Shape, int | None, np.ndarray]
_FLOATS = [np.dtype(kind) for kind in (np.float32, ml_dtypes.bfloat16, np.float16)]
FLOATS: Mapping[str, np.dtype] = {dtype.name: dtype for dtype in _FLOATS}
T5_FIELDS: Mapping[str, Any] = {
    'position': 'relative_bias',
    'norm': 'rms',
    'scale_attention': False,
    'norm_scale_plus_one': False,
    'scale_embedding': False,
    'attention_soft_cap': None,
    'attention_bias': False,
    'attention_out_bias': False,
    'attention_window': None,
    'unscaled_token': None,
    'qk_norm': False,
    'post_norms': False,
    'logits_soft_cap': None,
    'encoder': None,
    'share_embeddings': True,
    'merged_attention': False,
}
"""Fields of ModelConfig that have this value in every T5."""
_READ_AHEAD = 2**28  # bytes; a larger array is not read ahead, so that only one is in memory
_NAN_CHUNK = 2**24  # numbers checked at a time


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that a reader opened.

    Attributes:
        where: the folder or file, for messages.
        config: the model.
        dtypes: t5flan's parameter name -> dtype of its numbers in the file.
        read: (shape, layer) -> the array of `shape.one` in that dtype; layer None for a parameter without layers.
        vocabulary: an `IdsVocabulary` if the checkpoint has none.
        format: 'encoder_decoder', 'prefix_lm' or 'causal_lm'.
        step: the training step, if known.
        feature_lengths: the feature lengths of training, if known.
        extras: other files of a Hugging Face folder (tokenizer, generation), name -> content, which are kept unchanged.
        notes: what was assumed, and which parts of the checkpoint are not converted; one line each.
    """

    where: str
    config: ModelConfig
    dtypes: Mapping[str, np.dtype]
    read: Callable[[Shape, int | None], np.ndarray]
    vocabulary: Vocabulary
    format: str
    step: int = 0
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of all parameters."""
        all_shapes = shapes(self.config)
        return sum(math.prod(shape.whole) * self.dtypes[name].itemsize for name, shape in all_shapes.items())

    def cast(self, dtype: str) -> 'Checkpoint':
        """The same checkpoint with every number rounded to `dtype`."""
        rounded, read = FLOATS[dtype], self.read
        return dataclasses.replace(
            self,
            dtypes=dict.fromkeys(self.dtypes, rounded),
            read=lambda shape, layer: read(shape, layer).astype(rounded, copy=False),
        )

    def with_added_tokens(self, tokens: Sequence[str]) -> 'Checkpoint':
        """The same checkpoint with more tokens in its vocabulary, and rows for them in embedding and logits.

        A new row is the mean of the old ones, as of transformers' `resize_token_embeddings` (without its noise of
        1e-9 of their covariance). The number of rows is a multiple of 128, unless there were enough already.

        Raises:
            UserError: a token is empty, or the vocabulary has no text.
        """
        vocabulary = self.vocabulary.with_added_tokens(tokens)
        first, end, rows = self.vocabulary.vocab_size, vocabulary.vocab_size, self.config.vocab_size
        config = dataclasses.replace(self.config, vocab_size=rows if end <= rows else -(-end // 128) * 128)
        old, read, axes = shapes(self.config), self.read, named_axes(abstract_model(self.config))

        def read_grown(shape: Shape, layer: int | None) -> np.ndarray:
            array = read(old[shape.name], layer)
            if 'vocab' not in axes[shape.name]:  # embedding and logits, which have no axis of layers
                return array
            axis = axes[shape.name].index('vocab')
            mean = array.astype(np.float32).mean(axis, keepdims=True).astype(array.dtype)
            grown = np.concatenate([array, np.repeat(mean, config.vocab_size - rows, axis)], axis)
            new = (slice(None),) * axis + (slice(first, end),)
            grown[new] = mean
            return grown

        extras = {name: data for name, data in self.extras.items() if name in ('config.json', 'generation_config.json')}
        return dataclasses.replace(self, vocabulary=vocabulary, config=config, read=read_grown, extras=extras)

    def pieces(self, allow_nan: bool = False) -> Iterator[Piece]:
        """Every array; the next one is read while one is used.

        Raises:
            UserError: an array holds NaN, unless `allow_nan`.
        """

        def read_one(shape: Shape, layer: int | None) -> Piece:
            array = self.read(shape, layer)
            given = (array.shape, array.dtype)
            assert given == (shape.one, self.dtypes[shape.name]), (shape, *given)
            if not allow_nan and has_nan(array):
                problem = f'{self.where}: {shape.name_of(layer)} holds NaN: its training failed'
                raise UserError(f'{problem}. Convert an earlier checkpoint, or set --allow_nan.')
            return shape, layer, array

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pending: list[concurrent.futures.Future[Piece]] = []
            for shape, layer in all_pieces(self.config):
                small = math.prod(shape.one) * self.dtypes[shape.name].itemsize <= _READ_AHEAD
                if small:
                    pending.append(pool.submit(read_one, shape, layer))
                if len(pending) > 1 or (pending and not small):
                    yield pending.pop(0).result()
                if not small:
                    yield read_one(shape, layer)
            if pending:
                yield pending.pop().result()


def has_nan(array: np.ndarray) -> bool:
    """Whether any number is NaN."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _NAN_CHUNK):
        part = flat[start : start + _NAN_CHUNK]
        bfloat16 = part.dtype == FLOATS['bfloat16']  # NumPy has no fast loops for it
        # The maximum of numbers with a NaN is NaN.
        if (part.view(np.uint16) & 0x7FFF).max() > 0x7F80 if bfloat16 else np.isnan(part.max()):
            return True
    return False


def one_dtype(where: str, name: str, found: set[np.dtype]) -> np.dtype:
    """The dtype of a parameter whose layers may have several: one that holds all their numbers.

    Raises:
        UserError: a layer does not hold floating-point numbers of 32 bits or fewer.
    """
    for dtype in found - set(FLOATS.values()):
        given = f'{where}: {name} holds {dtype.name} numbers'
        raise UserError(f'{given}; expected float32, bfloat16 or float16 (quantized weights are not converted).')
    return found.pop() if len(found) == 1 else FLOATS['float32']


def match_arrays(
    where: str, source: str, fix: str, expected: Mapping[Key, tuple[str, Sequence[Sequence[int]]]], stored: Mapping
) -> dict[Key, Any]:
    """Finds the arrays of a model among those of a file.

    Args:
        where: the file, for messages.
        source: what determines the model's arrays, for messages: 'config.json (t5)'.
        fix: how to fix an error, for messages.
        expected: any key -> (the array's name in the file, the shapes it may have).
        stored: name -> array; only its shape is used.

    Returns:
        key -> array.

    Raises:
        UserError: an array is missing, has another shape, or belongs to no parameter.
    """
    unused, found = dict(stored), {}
    for key, (name, allowed) in expected.items():
        if name not in unused:
            raise UserError(f'{where} lacks {name} {list(allowed[0])}, which {source} requires. {fix}')
        found[key] = unused.pop(name)
        shape = tuple(found[key].shape)
        if shape not in allowed:
            raise UserError(f'{where}: {name} has shape {[*shape]}, but {source} requires {[*allowed[-1]]}. {fix}')
    if unused:
        raise UserError(f'{where} holds {min(unused)}, which {source} does not have ({len(unused)} such arrays). {fix}')
    return found


def require_fields(checkpoint: str, config: ModelConfig, needed: Mapping[str, Any], family: str) -> None:
    """Requires fields of the model to have the values that a foreign model family fixes.

    Raises:
        UserError: the first field that differs.
    """
    for field, value in needed.items():
        if (given := getattr(config, field)) != value:
            problem = f'{checkpoint}: ModelConfig.{field}={given!r}, but {family} has {value!r}'
            raise UserError(f'{problem}: the model cannot be written as one.')
