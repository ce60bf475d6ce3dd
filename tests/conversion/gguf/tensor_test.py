"""Each type of numbers, against its definition in ggml, read whole, transposed and in strips."""

import numpy as np
import pytest

from t5flan.conversion.gguf import file as gguf_file
from t5flan.conversion.gguf.tensor import TYPES
from t5flan.conversion.safetensors_files import strips
from tests.conversion.gguf import tiny

gguf = tiny.gguf
SHAPE = (48, 512)


def half(block: np.ndarray) -> float:
    return float(block.view(np.float16)[0])


def block_numbers(type: str, block: np.ndarray) -> list[float]:
    """The numbers of one block, one at a time, by ggml-common.h and ggml-quants.c, in float32."""
    one = np.float32
    if type == 'Q8_0':
        return [one(half(block[:2])) * one(x) for x in block[2:].view(np.int8)]
    if type in ('Q4_0', 'Q4_1'):
        low, high = block[-16:] & 15, block[-16:] >> 4
        quants = [*low, *high]
        if type == 'Q4_0':
            return [one(half(block[:2])) * one(int(x) - 8) for x in quants]
        return [one(half(block[:2])) * one(x) + one(half(block[2:4])) for x in quants]
    if type == 'Q6_K':
        low, high, scales = block[:128], block[128:192], block[192:208].view(np.int8)
        d, out = one(half(block[208:])), []
        for i in range(256):
            part, place = divmod(i, 128)
            group, lane = divmod(place, 32)
            nibble = low[64 * part + lane + 32 * (group % 2)] >> (4 * (group // 2)) & 15
            top = high[32 * part + lane] >> (2 * group) & 3
            out.append(d * one(scales[8 * part + 2 * group + lane // 16]) * one(int(nibble | top << 4) - 32))
        return out
    assert type == 'Q4_K'
    d, least, packed, out = one(half(block[:2])), one(half(block[2:4])), block[4:16], []
    for i in range(256):
        j = i // 32
        if j < 4:
            scale, minimum = packed[j] & 63, packed[j + 4] & 63
        else:
            scale = packed[j + 4] & 15 | packed[j - 4] >> 6 << 4
            minimum = packed[j + 4] >> 4 | packed[j] >> 6 << 4
        nibble = block[16 + 32 * (j // 2) + i % 32] >> (4 * (j % 2)) & 15
        out.append(d * one(scale) * one(nibble) - least * one(minimum))
    return out


def random_blocks(type: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    numbers, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    blocks = rng.integers(0, 256, (SHAPE[0], SHAPE[1] // numbers, size), np.uint8)
    scales = {'Q8_0': [0], 'Q4_0': [0], 'Q4_1': [0, 2], 'Q4_K': [0, 2], 'Q6_K': [208]}[type]
    for place in scales:
        halves = rng.normal(size=blocks.shape[:2]).astype(np.float16)
        blocks[..., place : place + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(SHAPE[0], -1)


@pytest.mark.parametrize('type', ['Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'])
def test_a_type_is_dequantized_as_defined(tmp_path, type):
    raw = random_blocks(type)
    metadata = {'general.architecture': 'llama'}
    path = tiny.write(tmp_path / 'x.gguf', metadata, {'a': np.ones(5, np.float32), 'x': raw}, {'x': type})
    tensor = gguf_file.read(path).tensors['x']
    assert (tensor.shape, tensor.dtype) == (SHAPE, np.float32)
    found = tensor.read()
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    for row in (0, 7, SHAPE[0] - 1):
        blocks = raw[row].reshape(-1, size)
        expected = [number for block in blocks for number in block_numbers(type, block)]
        np.testing.assert_array_equal(found[row], np.array(expected, np.float32))
    np.testing.assert_array_equal(tensor.read_transposed(), found.T)
    np.testing.assert_array_equal(tensor.rows(5, 9), found[5:9])


def test_every_type_is_tested_here_or_with_models():
    assert {*TYPES} == {'F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K'}


@pytest.mark.parametrize('type', ['F32', 'F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1'])
@pytest.mark.parametrize('heads', [0, 2, 6])
def test_strips_of_rows_are_rows_of_the_whole(tmp_path, type, heads):
    """Also where rows are in the order of pairs: a strip may begin and end inside a head."""
    import dataclasses

    array = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    path = tiny.write(tmp_path / 'x.gguf', {'general.architecture': 'llama'}, {'x': array}, {'x': type})
    tensor = dataclasses.replace(gguf_file.read(path).tensors['x'], heads=heads)
    kind = gguf.GGMLQuantizationType[type]
    expected = gguf.dequantize(gguf.quantize(array, kind), kind)
    if heads:
        pairs = [expected.reshape(heads, -1, 2, SHAPE[1])[:, :, i] for i in (0, 1)]
        expected = np.concatenate(pairs, axis=1).reshape(SHAPE)
    whole = tensor.read()
    np.testing.assert_array_equal(whole.astype(np.float32), expected)
    parts = [tensor.rows(first, last) for first, last in strips(SHAPE, np.dtype(np.float32), size=16 * 2048)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(np.concatenate([tensor.rows(*part) for part in tensor.parts()]), whole)


def test_a_quantized_vector_is_read(tmp_path):
    array = np.arange(64, dtype=np.float32)
    path = tiny.write(tmp_path / 'x.gguf', {'general.architecture': 'llama'}, {'x': array}, {'x': 'Q8_0'})
    tensor = gguf_file.read(path).tensors['x']
    kind = gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(tensor.read(), gguf.dequantize(gguf.quantize(array, kind), kind))
    np.testing.assert_array_equal(tensor.rows(40, 50), tensor.read()[40:50])
