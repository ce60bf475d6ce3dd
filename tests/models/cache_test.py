import dataclasses

import jax.numpy as jnp
import numpy as np

from t5flan.models.cache import Cache, pad_kv


def cache_of_two_rows() -> Cache:
    """Two layers, two rows, a prompt of three slots (one of them padding in row 1), and two empty slots."""
    prompt_LBPKH = jnp.arange(2 * 2 * 3 * 1 * 2, dtype=jnp.float32).reshape(2, 2, 3, 1, 2)
    return Cache(jnp.int32(3), jnp.array([0, 1], jnp.int32), *pad_kv((prompt_LBPKH, -prompt_LBPKH), 2))


def test_padding_a_prompt_adds_empty_slots():
    cache = cache_of_two_rows()
    assert cache.k_LBMKH.shape == cache.v_LBMKH.shape == (2, 2, 5, 1, 2)
    np.testing.assert_array_equal(cache.k_LBMKH[:, :, :3].reshape(-1), np.arange(24))
    assert not cache.k_LBMKH[:, :, 3:].any()


def test_padding_is_masked_and_not_counted_in_positions():
    cache = cache_of_two_rows()
    np.testing.assert_array_equal(cache.segment_ids_BM(), [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(cache.positions_B1(), [[3], [2]])
    np.testing.assert_array_equal(cache.advanced().positions_B1(), [[4], [3]])


def test_a_token_is_written_only_to_its_slot_and_layer():
    cache = cache_of_two_rows()
    token_B1KH = jnp.full((2, 1, 1, 2), 77.0)
    written = cache.updated(1, (token_B1KH, 2 * token_B1KH))
    assert (written.k_LBMKH[1, :, 3] == 77).all() and (written.v_LBMKH[1, :, 3] == 154).all()
    changed = np.argwhere(np.asarray(written.k_LBMKH != cache.k_LBMKH))
    assert {tuple(place[[0, 2]]) for place in changed} == {(1, 3)}
    np.testing.assert_array_equal(written.layer(1).k_BMKH, written.k_LBMKH[1])


def test_beams_repeat_rows_and_reorder_them_within_a_prompt():
    cache = cache_of_two_rows().repeated(2)
    np.testing.assert_array_equal(cache.pad_B, [0, 0, 1, 1])
    marked = dataclasses.replace(cache, k_LBMKH=cache.k_LBMKH + jnp.arange(4)[None, :, None, None, None])
    parents_BW, rows = np.array([[1, 1], [1, 0]]), np.array([1, 1, 3, 2])
    np.testing.assert_array_equal(marked.reordered(parents_BW, 5).k_LBMKH, marked.k_LBMKH[:, rows])
    reordered = marked.reordered(parents_BW, 2)  # the prompt's slots stay
    np.testing.assert_array_equal(reordered.k_LBMKH[:, :, 3:], marked.k_LBMKH[:, rows, 3:])
    np.testing.assert_array_equal(reordered.k_LBMKH[:, :, :3], marked.k_LBMKH[:, :, :3])
    assert cache.k_LBMKH.shape == (2, 4, 5, 1, 2) and cache.cross_kv(0) is None
