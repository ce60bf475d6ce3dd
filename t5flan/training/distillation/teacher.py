"""The frozen teacher of distillation (arXiv:1503.02531), whose probabilities a model learns beside the targets.

The teacher of an encoder-decoder may be the decoder that it was built from (T5Gemma, arXiv:2504.06225).

B batch, T target length, U length of input and target together, E emb_dim of the teacher.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes
from t5flan.sharding import Sharding, tree_shardings
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.config import LossConfig
from t5flan.training.distillation.rows import Batch, joined_rows

_FIX = 'Set LossConfig.teacher to a model with the vocabulary of the run.'


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Teacher:
    """A frozen model, and how it reads a batch of the student.

    Attributes:
        model: the model.
        eos_id: the end of sequence, which a decoder does not read between input and target.
        prefix_lm: it is a decoder that reads the prefix of a row in both directions.
    """

    model: Any
    eos_id: int = dataclasses.field(metadata={'static': True})
    prefix_lm: bool = dataclasses.field(default=False, metadata={'static': True})

    def hidden(self, batch: Batch) -> jax.Array:
        """Its hidden states [B, T, E] where it predicts the batch's targets."""
        if 'encoder_input_tokens' not in batch:
            left_out = () if self.prefix_lm else ('decoder_causal_attention',)
            return self.model.hidden({name: x for name, x in batch.items() if name not in left_out})
        if self.model.config.architecture == 'encoder_decoder':
            return self.model.hidden(batch)
        joined, place_BT = joined_rows(batch, self.eos_id)
        x_BUE = self.model.hidden(joined)
        place_BT = jnp.clip(place_BT, 0, x_BUE.shape[1] - 1)
        return jnp.take_along_axis(x_BUE, place_BT[..., None], axis=1)


def teacher_config(loss: LossConfig, student: ModelConfig) -> ModelConfig | None:
    """The model that LossConfig.teacher names, as it computes beside the student; None without a teacher.

    Raises:
        UserError: there is no such checkpoint, or it cannot read the student's batches.
    """
    return None if loss.teacher is None else _described(loss, student).model


def _described(loss: LossConfig, student: ModelConfig) -> checkpoints_lib.Description:
    """What is known of the teacher's checkpoint, with the model as it computes beside the student."""
    folder = str(loss.teacher)
    known = checkpoints_lib.read_description(folder)
    config = known.model
    if config.vocab_size != student.vocab_size:
        sizes = f'{config.vocab_size:,} rows in its embedding, the model {student.vocab_size:,}'
        raise UserError(f'LossConfig.teacher={folder!r} has {sizes}. {_FIX}')
    if (config.architecture, student.architecture) == ('encoder_decoder', 'decoder_only'):
        problem = f'LossConfig.teacher={folder!r} is an encoder-decoder, and the model a decoder'
        raise UserError(f'{problem}: its batches have no input for an encoder. Set it to a decoder.')
    config = dataclasses.replace(
        config, dropout_rate=0.0, dtype=student.dtype, attention=student.attention, remat='none'
    )
    return dataclasses.replace(known, model=config)


def abstract_teacher(loss: LossConfig, student: ModelConfig, sharding: Sharding, eos_id: int = 1) -> Teacher:
    """The teacher with shapes, dtypes and shardings in the place of its parameters.

    Args:
        loss: the settings.
        student: the model that is trained; the teacher computes in its dtype.
        sharding: the mesh.
        eos_id: the end of sequence of the run's vocabulary.

    Raises:
        UserError: there is no such checkpoint, or it cannot read the student's batches.
    """
    known = _described(loss, student)
    abstract = abstract_model(known.model)
    places = tree_shardings(sharding, abstract, logical_axes(abstract))
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, places)
    return Teacher(placed, eos_id, known.format == 'prefix_lm')


def read_teacher(loss: LossConfig, student: ModelConfig, fingerprint: str, eos_id: int, sharding: Sharding) -> Teacher:
    """The teacher that LossConfig.teacher names, placed on the mesh.

    Args:
        loss, student, sharding: see `abstract_teacher`.
        fingerprint: that of the run's vocabulary.
        eos_id: its end of sequence.

    Raises:
        UserError: there is no such checkpoint, or it has another vocabulary or cannot read the batches.
    """
    folder = str(loss.teacher)
    if checkpoints_lib.read_description(folder).vocabulary['fingerprint'] != fingerprint:
        raise UserError(f'LossConfig.teacher={folder!r} has another vocabulary than the run. {_FIX}')
    shapes = abstract_teacher(loss, student, sharding, eos_id)
    return dataclasses.replace(shapes, model=checkpoints_lib.restore_parameters(folder, shapes.model))
