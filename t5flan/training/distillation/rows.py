"""Input and target of each example as one text, for a teacher that is a decoder.

Packed rows

    encoder   a b </s> | c </s> |          decoder inputs   [0] x y | [0] z |         targets   x y </s> | z </s> |

become    [0] a b x y [0] c z    and the probabilities of x y </s> z </s> are those at    b x y c z.
(A decoder does not read the end of sequence between input and target.)

B batch, S source length, T target length, R = S + 1, U and V lengths.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Batch = Mapping[str, jax.Array]
_LAST = jnp.iinfo(jnp.int32).max  # the segment of padding, after all others


def joined_rows(batch: Batch, eos_id: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Input and target of each example as one text, as at the top of this file.

    Args:
        batch: of an encoder-decoder, packed or not.
        eos_id: the token that is left out of inputs.

    Returns:
        The batch for a decoder, rows of S + T tokens, and the place there of each target's prediction, int32 [B, T].
    """
    source_BS, inputs_BT = jnp.asarray(batch['encoder_input_tokens']), jnp.asarray(batch['decoder_input_tokens'])
    source_ids_BS = jnp.asarray(batch.get('encoder_segment_ids', source_BS > 0), jnp.int32)
    target_ids_BT = jnp.asarray(batch.get('decoder_segment_ids', batch['decoder_target_tokens'] > 0), jnp.int32)
    length, targets = source_BS.shape[1] + inputs_BT.shape[1], inputs_BT.shape[1]
    kept_BS = (source_ids_BS > 0) & (source_BS != eos_id)
    # Numbers of tokens before each, by the segments, which ascend: `begin` those of earlier ones, `end` of its own too.
    kept_BR = jnp.pad(jnp.cumsum(kept_BS, axis=1, dtype=jnp.int32), ((0, 0), (1, 0)))
    by_source, by_target = (jnp.where(ids > 0, ids, _LAST) for ids in (source_ids_BS, target_ids_BT))
    begin_BS, targets_BS = _kept_before(kept_BR, by_source, by_source, 'left'), _before(by_target, by_source, 'left')
    begin_BT, end_BT = (_kept_before(kept_BR, by_source, by_target, side) for side in ('left', 'right'))
    targets_BT = _before(by_target, by_target, 'left')
    number_BT = jnp.broadcast_to(jnp.arange(targets, dtype=jnp.int32)[None, :], inputs_BT.shape)
    place_BT = end_BT + number_BT
    is_start_BT = number_BT == targets_BT
    source_place_BS = jnp.where(kept_BS, kept_BR[:, :-1] + 1 + targets_BS, length)
    input_place_BT = jnp.where(is_start_BT, begin_BT + number_BT, place_BT)
    input_place_BT = jnp.where(target_ids_BT > 0, input_place_BT, length)
    places_BU = jnp.concatenate([source_place_BS, input_place_BT], axis=1)
    put = jax.vmap(lambda place_U, x_U: jnp.zeros(length, jnp.int32).at[place_U].set(x_U, mode='drop'))
    joined = lambda source_BS, target_BT: put(places_BU, jnp.concatenate([source_BS, target_BT], axis=1))
    of_decoder = {
        'decoder_input_tokens': joined(source_BS, inputs_BT),
        'decoder_segment_ids': joined(source_ids_BS, target_ids_BT),
        'decoder_positions': joined(source_place_BS - begin_BS - targets_BS, input_place_BT - begin_BT - targets_BT),
    }
    return of_decoder, place_BT


def _before(ids_BU: jax.Array, of_BV: jax.Array, side: str) -> jax.Array:
    """How many of ascending `ids_BU` are less than each of `of_BV` (side 'left'), or at most that ('right')."""
    return jax.vmap(lambda ids_U, of_V: jnp.searchsorted(ids_U, of_V, side=side).astype(jnp.int32))(ids_BU, of_BV)


def _kept_before(kept_BR: jax.Array, ids_BU: jax.Array, of_BV: jax.Array, side: str) -> jax.Array:
    return jnp.take_along_axis(kept_BR, _before(ids_BU, of_BV, side), axis=1)
