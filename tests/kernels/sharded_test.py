"""t5flan/kernels/sharded.py: rows split over devices give the results of whole rows, and what the devices send."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding
from t5flan.kernels.attention import RelativeBias
from t5flan.mesh import MeshConfig
from tests.kernels.attention_cases import QUICK, inputs, packed_decoder, segments
from tests.kernels.attention_reference import assert_near, compile_with_gradients, output_and_gradients, reference

MESHES = {
    'heads to spare': (dict(context=2, tensor=2, data=2), 8, 8),
    'a head for each device': (dict(context=4, tensor=2), 8, 8),
    'key heads for several': (dict(context=4, tensor=2), 8, 4),
    'one key head for each tensor part': (dict(context=4, tensor=2), 8, 2),
    'one key head for all': (dict(context=2, tensor=2, data=2), 4, 1),
    'all devices': (dict(context=8), 8, 2),
}


def on_mesh(mesh, arrays, options, program='chunked'):
    """Output and gradients with rows split over a mesh, and the text of the program."""
    with sharding.use(sharding.create_sharding(MeshConfig(**{'data': 1, **mesh}))) as placed:
        axes = [('batch', 'length', name, None) for name in ('act_heads', 'act_kv_heads', 'act_kv_heads')]
        shardings = [placed.named(axis, x.shape) for axis, x in zip(axes, arrays, strict=False)]
        shardings += [placed.replicated(), shardings[0]]
        spread = [jax.device_put(x, s) for x, s in zip(arrays, shardings, strict=True)]
        compiled, arguments = compile_with_gradients(*spread, program, QUICK, **options)
        return compiled(*arguments), compiled.as_text()


def sent(text):
    """The collectives of a program that move floats: (kind, dtype)."""
    found = re.findall(r' = \(?([a-z]+\d+)\[.* (all-gather|all-to-all|reduce-scatter)\(', text)
    return {(kind, dtype) for dtype, kind in found if dtype != 's32'}


@pytest.mark.parametrize('case', MESHES)
def test_exchanged_heads_match_the_reference(case):
    mesh, heads, kv_heads = MESHES[case]
    ids = segments(3, 2, 48)
    options = packed_decoder(ids)
    arrays = inputs(batch=2, queries=48, heads=heads, kv_heads=kv_heads, head_dim=8)
    results, text = on_mesh(mesh, arrays, options)
    assert_near(results, reference(*arrays, options), 1e-5)
    assert sent(text) == {('all-to-all', 'f32')}  # no device has keys of whole rows and all heads


def test_heads_that_do_not_divide_gather_keys():
    arrays = inputs(batch=2, queries=48, heads=6, kv_heads=3, head_dim=8)
    results, text = on_mesh(dict(context=4, data=2), arrays, {})
    assert_near(results, reference(*arrays, {}), 1e-5)
    assert sent(text) == {('all-gather', 'f32'), ('reduce-scatter', 'f32')}


@pytest.mark.parametrize('heads, kv_heads', [(8, 8), (8, 2), (6, 6)], ids=['exchanged', 'repeated', 'gathered'])
def test_gradients_in_bfloat16_are_as_exact_as_those_of_whole_rows(heads, kv_heads):
    """Sums over eight devices in bfloat16 would round eight times."""
    arrays = inputs(queries=64, heads=heads, kv_heads=kv_heads, head_dim=16, dtype=jnp.bfloat16)
    whole = output_and_gradients(*arrays, 'chunked', QUICK, bias=RelativeBias(True))
    expected = reference(*arrays, dict(bias=RelativeBias(True)))
    split, _ = on_mesh(dict(context=8), arrays, dict(bias=RelativeBias(True)))
    error = lambda results, i: np.sqrt(np.mean((np.asarray(results[i], np.float64) - expected[i]) ** 2))
    for i in (2, 3):  # keys and values
        assert error(split, i) < 1.4 * error(whole, i)  # 1.5 if bfloat16 is summed
