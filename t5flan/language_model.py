"""`t5flan.load(FOLDER)`: a checkpoint folder as an object that generates text, scores it and returns logits.

    model = t5flan.load('runs/mine')
    model.generate(['What is 3 + 4?'])                          # ['7']
    model.generate(['Write a poem.'], temperature=0.7, seed=1)  # any field of `Decoding`, or decoding=Decoding(...)
    model.beams(['What is 3 + 4?'], 4)                          # the 4 best continuations of each text, with scores
    model.score(['What is 3 + 4?'] * 2, ['7', '8'])             # log-likelihoods, nats
    model.logits({'encoder_input_tokens': ..., 'decoder_input_tokens': ...})   # float32 NumPy array [B, T, V]

Nothing here needs TensorFlow, SeqIO or gin.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.adapters.rows import choose
from t5flan.data.config import ARCHITECTURES
from t5flan.data.vocabulary import chat_template, prompt_format
from t5flan.data.vocabulary.chat_template import Message
from t5flan.data.vocabulary.loading import load_saved_vocabulary
from t5flan.data.vocabulary.prompt_format import answer_ids, prompt_ids
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.decoding.adapters import Choice, adapter_numbers, add_adapters, choice_of
from t5flan.decoding.config import GREEDY, SAMPLING, Decoding, DecodingSettings
from t5flan.decoding.generate import Generation, generate
from t5flan.decoding.likelihood import Ids, Likelihood, likelihoods, rolling_windows
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.model import Model
from t5flan.models.parameters import logical_axes
from t5flan.training import checkpoints

Progress = Callable[[int], None]


class ScoredText(NamedTuple):
    """A continuation and its score."""

    text: str
    score: float


def load(
    folder: str | os.PathLike[str],
    step: int | None = None,
    mesh: MeshConfig | None = None,
    dtype: str | None = None,
    adapters: Mapping[str, str | os.PathLike[str]] | None = None,
) -> 'LanguageModel':
    """Reads a checkpoint folder: parameters, configuration, vocabulary.

    Args:
        folder: the workdir of a run, or one of its steps (WORKDIR/checkpoints/1000).
        step: which checkpoint; default: the latest.
        mesh: how this host's devices share the parameters. Default: every accelerator holds all parameters and takes
            its share of the batch. A model too large for one device needs MeshConfig(fsdp=...) or (tensor=...).
        dtype: the compute dtype ('bfloat16' on an accelerator); default: that of the checkpoint.
        adapters: name -> folder of an adapter of this model: each prompt may choose one by name.

    Raises:
        UserError: the folder is not a checkpoint folder, it has no complete checkpoint or not that step, its
            vocabulary is not the one the model was trained with, or an adapter is not one of this model.
    """
    root = checkpoints.checkpoint_root(folder)
    description = checkpoints.read_description(root)
    found = checkpoints.find_step(folder, step)
    sharding = _local_sharding(mesh)
    changes: dict[str, Any] = {} if dtype is None else {'dtype': dtype}
    abstract = abstract_model(dataclasses.replace(description.model, **changes))
    if sharding is None:
        placed = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = jax.tree.map(lambda _: placed, abstract)
    else:
        shardings = sharding_lib.tree_shardings(sharding, abstract, logical_axes(abstract))
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:  # the vocabulary is read meanwhile
        restored = pool.submit(checkpoints.restore_parameters, root, abstract, found)
        vocabulary = load_saved_vocabulary(root / checkpoints.VOCABULARY, description.vocabulary)
        model = restored.result()
    if adapters:
        model = add_adapters(model, os.fspath(folder), adapters, sharding)
    return LanguageModel(
        model,
        vocabulary,
        description.format,
        description.feature_lengths,
        sharding,
        os.fspath(root),
        found,
        description.data.get('instructions.prompt_format', 'plain' if description.data else None),
        tuple(adapters or ()),
    )


def _local_sharding(mesh: MeshConfig | None) -> sharding_lib.Sharding | None:
    devices = jax.local_devices()
    if mesh is None and (len(devices) == 1 or devices[0].platform == 'cpu'):
        return None  # splitting work over simulated CPU devices only makes it slower
    return sharding_lib.create_sharding(mesh or MeshConfig(), devices)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A model with the vocabulary and the format it was trained with.

    The methods that generate take any field of `Decoding` as a keyword, `decoding=Decoding(...)`, or both: keywords
    win. An unknown keyword or a value out of range is a UserError. If adapters were loaded, `adapter` is the name of
    one for all rows, or a list with a name or None (the base alone) for each row.

    Attributes:
        model: the parameters.
        vocabulary: converts text to ids and back.
        format: 'encoder_decoder', 'prefix_lm' or 'causal_lm': how inputs and targets become model features.
        feature_lengths: the lengths in training; 'targets' is the default of `max_new_tokens`. Inputs may be longer:
            positions are relative.
        sharding: the mesh that holds the parameters, if any.
        folder, step: the checkpoint the parameters come from, if any.
        prompt_format: how its rows join prompt and answer, see `InstructionConfig.prompt_format`. A converted
            checkpoint has None: prompts are then as for transformers' `generate`.
        adapters: the names of its adapters.

    Raises:
        UserError: the format does not fit the model's architecture, or the vocabulary is larger than its embedding.
    """

    model: Model
    vocabulary: Vocabulary
    format: str
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sharding: sharding_lib.Sharding | None = None
    folder: str | None = None
    step: int | None = None
    prompt_format: str | None = None
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        architecture = self.model.config.architecture
        if ARCHITECTURES.get(self.format) != architecture:
            fitting = [name for name, needed in ARCHITECTURES.items() if needed == architecture]
            raise UserError(
                f'format {self.format!r} does not fit ModelConfig.architecture={architecture!r}: expected '
                f'{" or ".join(fitting)}. Set DataConfig.format.'
            )
        if self.vocabulary.vocab_size > self.model.config.vocab_size:
            raise UserError(
                f'the vocabulary has {self.vocabulary.vocab_size} ids, ModelConfig.vocab_size='
                f'{self.model.config.vocab_size} embeds fewer: they do not belong together.'
            )

    @property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.model.config

    @property
    def max_new_tokens(self) -> int:
        """The default limit on new tokens: the length of targets in training."""
        return self.feature_lengths.get('targets', 128)

    @property
    def inputs_end(self) -> bool:
        """Whether inputs end with the end of sequence, as in training; a plain language model has no inputs."""
        in_training = self.format != 'causal_lm' or 'inputs' in self.feature_lengths
        return in_training or self.vocabulary.conventions.add_eos

    def in_format(self, chosen: str = 'auto') -> 'LanguageModel':
        """The model with a prompt format for instructions, see `InstructionConfig.prompt_format`.

        Args:
            chosen: 'auto' is the format it was trained with; for a converted decoder that of its tokenizer.
        """
        if chosen == 'auto':
            is_foreign = self.prompt_format is None and self.format != 'encoder_decoder'
            chosen = prompt_format.natural_format(self.vocabulary) if is_foreign else self.prompt_format or 'plain'
        return dataclasses.replace(self, prompt_format=chosen)

    @property
    def starts(self) -> bool:
        """Whether the decoder reads the start token first; not if a decoder-only model's tokenizer adds none."""
        return self.format == 'encoder_decoder' or self.vocabulary.conventions.add_bos

    # -- Text in, text out ------------------------------------------------------------------------------------------

    def generate(
        self,
        texts: Sequence[str],
        max_new_tokens: int | None = None,
        *,
        decoding: Decoding = GREEDY,
        rows: Sequence[int] | None = None,
        adapter: Choice = None,
        progress: Progress | None = None,
        **settings: Unpack[DecodingSettings],
    ) -> list[str]:
        """Returns the continuation of each text. Mode tokens and sentinels spelled out in a text are read as such.

        Args:
            texts: prompts.
            max_new_tokens: as in `Decoding`.
            decoding: see `Decoding`; default: greedy.
            rows: each text's row number, which with the seed determines its samples; default: 0, 1, 2, ...
            adapter: the name of an adapter for all texts, or one for each; None is the base alone.
            progress: called with the number of finished texts after each batch.
            **settings: fields of `decoding` to replace.
        """
        decoding = decoding.replace(**settings)
        decoding.require_one_sample('generate')
        inputs = [self.input_ids(text) for text in _texts(texts)]
        given: dict[str, Any] = dict(rows=rows, adapter=adapter, progress=progress)
        generations = self.generate_ids(inputs, max_new_tokens, decoding=decoding, **given)
        return [best.text(self.vocabulary) for best, *_ in generations]

    def samples(
        self,
        texts: Sequence[str],
        count: int,
        max_new_tokens: int | None = None,
        *,
        decoding: Decoding = SAMPLING,
        rows: Sequence[int] | None = None,
        adapter: Choice = None,
        progress: Progress | None = None,
        **settings: Unpack[DecodingSettings],
    ) -> list[list[str]]:
        """Returns `count` samples for each text; the first is that of `generate` with the same settings."""
        decoding = decoding.replace(**settings).replace(num_samples=count)
        inputs = [self.input_ids(text) for text in _texts(texts)]
        given: dict[str, Any] = dict(rows=rows, adapter=adapter, progress=progress)
        generations = self.generate_ids(inputs, max_new_tokens, decoding=decoding, **given)
        return [[sample.text(self.vocabulary) for sample in samples] for samples in generations]

    def beams(
        self,
        texts: Sequence[str],
        count: int,
        max_new_tokens: int | None = None,
        *,
        decoding: Decoding = GREEDY,
        adapter: Choice = None,
        progress: Progress | None = None,
        **settings: Unpack[DecodingSettings],
    ) -> list[list[ScoredText]]:
        """Returns the best continuations of each text that a beam search of width `count` finds, the best first.

        The first is that of `generate` with num_beams=count. See `Decoding` for the score, `length_penalty`,
        `early_stopping` and `beam_scoring`.
        """
        decoding = decoding.replace(**settings).replace(num_beams=count)
        inputs = [self.input_ids(text) for text in _texts(texts)]
        given: dict[str, Any] = dict(adapter=adapter, progress=progress)
        generations = self.generate_ids(inputs, max_new_tokens, decoding=decoding, **given)
        return [[ScoredText(one.text(self.vocabulary), one.score) for one in beams] for beams in generations]

    def chat(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int | None = None,
        *,
        tools: Sequence[Any] | None = None,
        decoding: Decoding = GREEDY,
        rows: Sequence[int] | None = None,
        adapter: Choice = None,
        progress: Progress | None = None,
        **settings: Unpack[DecodingSettings],
    ) -> list[str]:
        """Returns the assistant's reply to each conversation, worded by the tokenizer's chat template.

        Args:
            conversations: the turns so far, such as [{'role': 'user', 'content': 'What is 3 + 4?'}].
            tools: JSON schemas of functions that the template may list.
            max_new_tokens: as in `generate`, like `decoding`, `rows`, `adapter` and `progress`.
            **settings: fields of `decoding` to replace.

        Raises:
            UserError: the vocabulary has no chat template, or it refuses a conversation.
        """
        decoding = decoding.replace(**settings)
        decoding.require_one_sample('chat')
        if max_new_tokens is not None:
            decoding = decoding.replace(max_new_tokens=max_new_tokens)
        inputs = [chat_template.encode(self.vocabulary, turns, tools=tools, reply=True) for turns in conversations]
        given: dict[str, Any] = dict(rows=rows, adapter=adapter, progress=progress)
        replies = self.continuations(inputs, decoding=decoding, **given, chat=True)
        return [best.text for best, *_ in replies]

    def continuations(
        self,
        inputs: Sequence[Sequence[int]],
        *,
        decoding: Decoding = GREEDY,
        rows: Sequence[int] | None = None,
        adapter: Choice = None,
        progress: Progress | None = None,
        chat: bool = False,
    ) -> list[list[ScoredText]]:
        """Returns every sample or beam of each prompt of ids; the first is that of `generate`, or of `chat`.

        Args:
            chat: the prompts are conversations that a chat template encoded, and a reply ends with its turn.
        """
        end = self.vocabulary.turn_end_id if chat else None
        started = chat and self.format != 'encoder_decoder'
        decode = self.vocabulary.decode if end is None else self._decoder(end)
        given: dict[str, Any] = dict(rows=rows, adapter=adapter, progress=progress)
        generations = self.generate_ids(inputs, decoding=decoding, **given, started=started, end_id=end)
        text = lambda one: decode(one.tokens.tolist()) if one.before_stop is None else one.before_stop
        return [[ScoredText(text(one), one.score) for one in group] for group in generations]

    def score(
        self, inputs: Sequence[str], targets: Sequence[str], batch_size: int = 32, *, adapter: Choice = None
    ) -> list[float]:
        """Returns log p(target | input) in nats: the sum over the target's tokens and its end of sequence."""
        if len(_texts(inputs)) != len(_texts(targets)):
            raise UserError(f'score got {len(inputs)} inputs and {len(targets)} targets, expected the same number.')
        input_ids = [self.input_ids(text) for text in inputs]
        answer = functools.partial(answer_ids, self.vocabulary, prompt_format=self.prompt_format or 'plain')
        target_ids = [answer(prompt, text) for prompt, text in zip(inputs, targets, strict=True)]
        return self.score_ids(input_ids, target_ids, batch_size, adapter=adapter)

    def perplexity(
        self, texts: Sequence[str], window: int = 1024, batch_size: int = 8, *, adapter: Choice = None
    ) -> list[float]:
        """Returns exp(-mean log p) over the tokens of each text, for a decoder-only model.

        A token is predicted from those before it in its window, at most `window` of them, as in lm-eval's
        `loglikelihood_rolling`: see `decoding.likelihood.rolling_windows`.

        Raises:
            UserError: the model is an encoder-decoder, or a text is empty.
        """
        if self.format == 'encoder_decoder':
            raise UserError('perplexity needs a decoder-only model. Use `score` with inputs and targets.')
        ids = [self.vocabulary.encode(text) for text in _texts(texts)]
        for i, one in enumerate(ids):
            if not one:
                raise UserError(f'text {i} is empty, expected at least one token. Remove it.')
        start = self.vocabulary.start_id
        pairs = [(i, *pair) for i, one in enumerate(ids) for pair in rolling_windows(one, start, window)]
        contexts, windows = [context for _, context, _ in pairs], [target for _, _, target in pairs]
        chosen = choice_of(adapter, [i for i, *_ in pairs], len(ids))
        found = self.likelihoods(contexts, windows, batch_size=batch_size, started=True, adapter=chosen)
        totals = [0.0] * len(ids)
        for (i, *_), likelihood in zip(pairs, found, strict=True):
            totals[i] += likelihood.log_prob
        return [math.exp(-total / len(one)) for total, one in zip(totals, ids)]

    def logits(self, batch: Mapping[str, np.ndarray], *, adapter: Choice = None) -> np.ndarray:
        """Model features (T5X's names, e.g. encoder_input_tokens, decoder_input_tokens) -> float32 [B, T, V].

        Raises:
            UserError: a feature that the format needs is missing.
        """
        needed = ['encoder_input_tokens'] * (self.format == 'encoder_decoder') + ['decoder_input_tokens']
        for name in needed:
            if name not in batch:
                raise UserError(f'logits needs the model feature {name!r}; the batch has {sorted(batch)}.')
        numbers = adapter_numbers(self.adapters, adapter, len(batch['decoder_input_tokens']))
        model = self.model if numbers is None else choose(self.model, np.array(numbers, np.int32))
        with sharding_lib.use(self.sharding):
            return np.asarray(_logits(model, {name: jnp.asarray(x) for name, x in batch.items()}), np.float32)

    # -- Ids in, ids out --------------------------------------------------------------------------------------------

    def input_ids(self, text: str) -> list[int]:
        """A prompt's ids as in training."""
        chosen = self.prompt_format or 'plain'
        if chosen == 'plain' and not self.inputs_end:
            return self.vocabulary.encode(text)
        return prompt_ids(self.vocabulary, text, chosen)

    def generate_ids(
        self,
        inputs: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        *,
        decoding: Decoding = GREEDY,
        rows: Sequence[int] | None = None,
        adapter: Choice = None,
        progress: Progress | None = None,
        started: bool = False,
        end_id: int | None = None,
        **settings: Unpack[DecodingSettings],
    ) -> list[list[Generation]]:
        """Returns the samples or beams of each input; see `decoding.generate.generate`.

        Args:
            started: inputs of a decoder-only model begin with their start token, as for transformers' `generate`;
                always so if its tokenizer adds none.
            end_id: the token that ends a continuation; default: the vocabulary's end of sequence.
        """
        decoding = decoding.replace(**settings)
        decoding.require_effect()
        started = started or not self.starts or self.prompt_format == 'chat'
        if not self.starts:  # an empty prompt needs a token to read
            inputs = [ids if len(ids) else [self.vocabulary.start_id] for ids in inputs]
        if max_new_tokens is None:
            max_new_tokens = decoding.max_new_tokens or self.max_new_tokens
        if end_id is None:
            end_id = prompt_format.end_id(self.vocabulary, self.prompt_format or 'plain')
        with sharding_lib.use(self.sharding):
            return generate(
                self.model,
                inputs,
                decoding.replace(max_new_tokens=max_new_tokens),
                eos_id=end_id,
                start_id=None if started else self.vocabulary.start_id,
                rows=rows,
                adapters=adapter_numbers(self.adapters, adapter, len(inputs)),
                prefix_lm=self.format == 'prefix_lm',
                known_ids=self.vocabulary.vocab_size,
                decode=self._decoder(end_id),
                progress=progress,
            )

    def _decoder(self, end_id: int) -> Callable[[Sequence[int]], str]:
        """Token ids -> the text before `end_id`."""

        def decode(ids: Sequence[int]) -> str:
            return self.vocabulary.decode(ids[: ids.index(end_id)] if end_id in ids else ids)

        return decode

    def score_ids(
        self, inputs: Sequence[Ids], targets: Sequence[Ids], batch_size: int = 32, *, adapter: Choice = None
    ) -> list[float]:
        """Returns log p(target ids | input ids) in nats. No end of sequence is added."""
        chosen = [i for i, target in enumerate(targets) if len(target)]  # nothing has the probability 1
        names = choice_of(adapter, chosen, len(inputs))
        given: dict[str, Any] = dict(batch_size=batch_size, adapter=names)
        found = self.likelihoods([inputs[i] for i in chosen], [targets[i] for i in chosen], **given)
        scores = dict(zip(chosen, found, strict=True))
        return [scores[i].log_prob if i in scores else 0.0 for i in range(len(inputs))]

    def likelihoods(
        self,
        inputs: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        *,
        batch_size: int = 32,
        started: bool = False,
        adapter: Choice = None,
        progress: Progress | None = None,
    ) -> list[Likelihood]:
        """Returns log p(target ids | input ids), and whether greedy decoding writes the target, for each pair.

        Each distinct input is read once, whatever the number of its targets: the options of a question share it. See
        `decoding.likelihood.likelihoods`.

        Args:
            batch_size: distinct inputs that are read together.
            started: inputs of a decoder-only model begin with their start token; always so if its tokenizer adds none.
            progress: called with the number of finished pairs after each batch.
        """
        start_id, decoder_only = self.vocabulary.start_id, self.format != 'encoder_decoder'
        if decoder_only and self.starts and not started:
            inputs = [[start_id, *ids] for ids in inputs]
        elif decoder_only:
            inputs = [ids if len(ids) else [start_id] for ids in inputs]
        with sharding_lib.use(self.sharding):
            return likelihoods(
                self.model,
                inputs,
                targets,
                start_id=start_id,
                adapters=adapter_numbers(self.adapters, adapter, len(inputs)),
                prefix_lm=self.format == 'prefix_lm',
                batch_size=batch_size,
                progress=progress,
            )


@jax.jit
def _logits(model: Model, batch: Mapping[str, jax.Array]) -> jax.Array:
    return model(batch)


def _texts(texts: Sequence[str]) -> Sequence[str]:
    """Rejects a bare string, which would be read as a list of its letters, and what is no text."""
    if isinstance(texts, str):
        raise UserError(f'got the string {texts[:40]!r}, expected a list of texts. Write [text].')
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f'text {i} is {text!r:.40}, expected a string. Give a list of texts.')
    return texts
