"""`t5flan.load(FOLDER)`: a checkpoint folder as an object that generates, scores and gives logits.

    model = t5flan.load('runs/mine')
    model.generate(['What is 3 + 4?'])                          # ['7']
    model.score(['What is 3 + 4?'] * 2, ['7', '8'])             # log-likelihoods, nats
    model.logits({'encoder_input_tokens': …, 'decoder_input_tokens': …})   # float32 numpy [B, T, V]

Nothing here needs TensorFlow, SeqIO or gin.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.data.batches.converter import make_batch
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.decoding.generate import Generation, generate, rounded_length
from t5flan.decoding.sampling import Sampling
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.model import Model
from t5flan.models.parameters import logical_axes

FORMATS = {'encoder_decoder': 'encoder_decoder', 'prefix_lm': 'decoder_only', 'causal_lm': 'decoder_only'}
"""Format -> the architecture it is for."""

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with the vocabulary and the format it was trained with.

    Attributes:
        model: the parameters.
        vocabulary: text to ids and back.
        format: 'encoder_decoder', 'prefix_lm' or 'causal_lm': how inputs and targets become model features.
        feature_lengths: what it was trained with; 'targets' is the default for `max_new_tokens`. Inputs are not cut to
            theirs: positions are relative.
        sharding: the mesh the parameters lie on, if there is one.
        folder, step: where the parameters come from, if from a folder.
    """

    model: Model
    vocabulary: Vocabulary
    format: str
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sharding: sharding_lib.Sharding | None = None
    folder: str | None = None
    step: int | None = None

    def __post_init__(self):
        architecture = self.model.config.architecture
        if FORMATS.get(self.format) != architecture:
            fitting = [name for name, needed in FORMATS.items() if needed == architecture]
            raise UserError(
                f'format {self.format!r} is not one of a model whose ModelConfig.architecture is '
                f'{architecture!r}: expected {" or ".join(fitting)}. Set DataConfig.format.'
            )
        if self.vocabulary.vocab_size > self.model.config.vocab_size:
            raise UserError(
                f'the vocabulary has {self.vocabulary.vocab_size} ids, ModelConfig.vocab_size='
                f'{self.model.config.vocab_size} embeds fewer: they do not belong together.'
            )

    @property
    def config(self) -> ModelConfig:
        """The shape of the model."""
        return self.model.config

    @property
    def max_new_tokens(self) -> int:
        """How many tokens are generated where nothing else is asked for: the length of targets in training."""
        return self.feature_lengths.get('targets', 128)

    @property
    def inputs_end(self) -> bool:
        """Whether an input ends with the end of sequence, as in training; a plain language model has no inputs."""
        return self.format != 'causal_lm' or 'inputs' in self.feature_lengths

    # -- Text in, text out ------------------------------------------------------------------------------------------

    def generate(
        self,
        texts: Sequence[str],
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 32,
        rows: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[str]:
        """What the model writes after each text. Mode tokens and sentinels spelled in a text are read as such.

        Args:
            temperature: 0 is greedy; above it tokens are drawn, within `top_k` and `top_p`.
            rows: each text's number, which with `seed` decides what is drawn for it; default 0, 1, 2, …

        Raises:
            UserError: a setting is out of its range.
        """
        one = self.generate_ids(
            [self.input_ids(text) for text in _texts(texts)],
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
            seed=seed,
            batch_size=batch_size,
            rows=rows,
            progress=progress,
        )
        return [self.vocabulary.decode(samples[0].tokens) for samples in one]

    def samples(
        self,
        texts: Sequence[str],
        count: int,
        max_new_tokens: int | None = None,
        temperature: float = 0.7,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int = 8,
    ) -> list[list[str]]:
        """`count` draws for each text; the text is read once. The first is what `generate` draws with the same seed."""
        drawn = self.generate_ids(
            [self.input_ids(text) for text in _texts(texts)],
            max_new_tokens,
            Sampling(temperature, top_k, top_p),
            seed=seed,
            num_samples=count,
            batch_size=batch_size,
        )
        return [[self.vocabulary.decode(sample.tokens) for sample in samples] for samples in drawn]

    def score(self, inputs: Sequence[str], targets: Sequence[str], batch_size: int = 32) -> list[float]:
        """log p(target | input) in nats: the sum over the target's tokens and its end of sequence."""
        if len(_texts(inputs)) != len(_texts(targets)):
            raise UserError(
                f'score was given {len(inputs)} inputs and {len(targets)} targets; expected as many of each.'
            )
        eos = [self.vocabulary.eos_id]
        return self.score_ids(
            [self.input_ids(text) for text in inputs],
            [self.vocabulary.encode(text) + eos for text in targets],
            batch_size,
        )

    def logits(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Model features (T5X's names, e.g. encoder_input_tokens, decoder_input_tokens) -> float32 [B, T, V].

        Raises:
            UserError: a feature that the format needs is missing.
        """
        needed = ['encoder_input_tokens'] * (self.format == 'encoder_decoder') + ['decoder_input_tokens']
        for name in needed:
            if name not in batch:
                raise UserError(f'logits needs the model feature {name!r}; the batch has {sorted(batch)}.')
        with self._placed():
            return np.asarray(_logits(self.model, {name: jnp.asarray(x) for name, x in batch.items()}), np.float32)

    # -- Ids in, ids out --------------------------------------------------------------------------------------------

    def input_ids(self, text: str) -> list[int]:
        """A prompt's ids as in training."""
        return self.vocabulary.encode(text, special_tokens=True) + [self.vocabulary.eos_id] * self.inputs_end

    def generate_ids(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        sampling: Sampling = Sampling(),
        *,
        seed: int = 0,
        num_samples: int = 1,
        batch_size: int = 32,
        rows: Sequence[int] | None = None,
        progress: Progress | None = None,
        started: bool = False,
    ) -> list[list[Generation]]:
        """`num_samples` continuations of each input; see decoding/generate.py.

        `started`: inputs of a decoder-only model begin with their start token, as `generate` of transformers takes them.
        """
        with self._placed():
            return generate(
                self.model,
                inputs,
                eos_id=self.vocabulary.eos_id,
                start_id=None if started else self.vocabulary.start_id,
                sampling=sampling,
                seed=seed,
                rows=rows,
                max_new_tokens=self.max_new_tokens if max_new_tokens is None else max_new_tokens,
                num_samples=num_samples,
                prefix_lm=self.format == 'prefix_lm',
                batch_size=batch_size,
                progress=progress,
            )

    def score_ids(
        self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], batch_size: int = 32
    ) -> list[float]:
        """log p(target ids | input ids): the ids as they are, with whatever end they have."""
        scores = [0.0] * len(inputs)
        order = sorted(range(len(inputs)), key=lambda i: -(len(inputs[i]) + len(targets[i])))
        with self._placed():
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                batch = self._features([inputs[i] for i in chosen], [targets[i] for i in chosen])
                scores_B = jax.device_get(_score(self.model, batch))
                for place, i in enumerate(chosen):
                    scores[i] = float(scores_B[place])
        return scores

    def _features(self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """Unpacked model features as in training, padded to few shapes."""
        longest = {'inputs': max(map(len, inputs)), 'targets': max(map(len, targets))}
        if self.format != 'encoder_decoder':  # a row holds both, one after the other
            longest = {'inputs': 0, 'targets': max(len(a) + len(b) for a, b in zip(inputs, targets))}
        parts = 1 if self.sharding is None else self.sharding.size('batch')
        rows = -(-(1 << (len(inputs) - 1).bit_length()) // parts) * parts
        examples = [
            [{'inputs': np.asarray(a, np.int32), 'targets': np.asarray(b, np.int32)}] for a, b in zip(inputs, targets)
        ]
        return make_batch(
            self.format,
            {name: rounded_length(length) if length else 0 for name, length in longest.items()},
            examples + [[]] * (rows - len(examples)),
            packed=False,
            start_id=self.vocabulary.start_id,
        )

    @contextlib.contextmanager
    def _placed(self) -> Iterator[None]:
        with sharding_lib.use(self.sharding):
            yield


def load(
    folder: str | os.PathLike[str], step: int | None = None, mesh: MeshConfig | None = None, dtype: str | None = None
) -> LanguageModel:
    """Reads a checkpoint folder: parameters, configuration, vocabulary.

    Args:
        folder: the workdir of a run, or one of its steps (WORKDIR/checkpoints/1000).
        step: which checkpoint; default the latest.
        mesh: how this host's devices share the parameters; default: every accelerator has a copy and its part of the
            batch. A model that one device cannot hold wants MeshConfig(fsdp=…) or (tensor=…).
        dtype: of the computation ('bfloat16' on an accelerator); default that of the folder.

    Raises:
        UserError: no checkpoint folder, no whole checkpoint in it, no such step, or a vocabulary that is not the
            checkpoint's.
    """
    from t5flan.training import checkpoints

    root = checkpoints.checkpoint_root(folder)
    description = checkpoints.read_description(root)
    found = checkpoints.find_step(folder, step)
    vocabulary = load_vocabulary(root / checkpoints.VOCABULARY)
    expected = description.vocabulary.get('fingerprint')
    if expected is not None and expected != vocabulary.fingerprint:
        raise UserError(
            f'{root / checkpoints.VOCABULARY} ({vocabulary.vocab_size} ids) is not the vocabulary the '
            f'checkpoint was trained with ({description.vocabulary.get("size")} ids). Put that one back.'
        )
    sharding = _local_sharding(mesh)
    abstract = abstract_model(
        description.model if dtype is None else dataclasses.replace(description.model, dtype=dtype)
    )
    if sharding is None:
        placed = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: placed, abstract)
    else:
        shardings = sharding_lib.tree_shardings(sharding, abstract, logical_axes(abstract))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    model = checkpoints.restore_parameters(root, abstract, found)
    return LanguageModel(
        model, vocabulary, description.format, description.feature_lengths, sharding, os.fspath(root), found
    )


def _local_sharding(mesh: MeshConfig | None) -> sharding_lib.Sharding | None:
    devices = jax.local_devices()
    if mesh is None and (len(devices) == 1 or devices[0].platform == 'cpu'):
        return None  # simulated CPU devices only get in each other's way
    return sharding_lib.create_sharding(mesh or MeshConfig(), devices)


@jax.jit
def _logits(model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
    return model(batch)


@jax.jit
def _score(model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
    """Sum of the weighted targets' log-probabilities, [B] float32, holding the logits of one row at a time."""

    def row(features: tuple[jax.Array, ...]) -> jax.Array:
        x_TD, targets_T, weights_T = features
        log_probs_TV = jax.nn.log_softmax(model.logits(x_TD[None])[0], axis=-1)
        return jnp.sum(jnp.take_along_axis(log_probs_TV, targets_T[:, None], axis=-1)[:, 0] * weights_T)

    return jax.lax.map(row, (model.hidden(batch), batch['decoder_target_tokens'], batch['decoder_loss_weights']))


def _texts(texts: Sequence[str]) -> Sequence[str]:
    """Refuses a bare string, which is a sequence of its letters."""
    if isinstance(texts, str):
        raise UserError(f'expected a list of texts, was given one: [{texts[:40]!r}] is a list.')
    return texts
