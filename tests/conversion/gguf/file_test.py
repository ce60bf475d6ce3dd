"""Headers are read as the `gguf` package reads them; a damaged file of any kind is one line, and at once."""

import shutil
import struct

import numpy as np
import pytest

from t5flan.conversion import convert
from t5flan.conversion.gguf import file as gguf_file
from t5flan.conversion.gguf import model
from t5flan.errors import UserError
from tests.conversion.gguf import tiny

gguf = tiny.gguf
HEADER = b'GGUF' + struct.pack('<I', 3)


def text(value: str) -> bytes:
    return struct.pack('<Q', len(value)) + value.encode()


def raw(*parts: bytes, tensors: int = 0, metadata: int = 0) -> bytes:
    return HEADER + struct.pack('<QQ', tensors, metadata) + b''.join(parts)


def tensor(name: str, dims, type: int, offset: int) -> bytes:
    return text(name) + struct.pack(f'<I{len(dims)}QIQ', len(dims), *dims, type, offset)


def refused(path, message: str | None = None) -> str:
    with pytest.raises(UserError, match=message) as error:
        gguf_file.read(path)
    assert '\n' not in str(error.value) and str(error.value).endswith('.') and len(str(error.value)) < 500
    return str(error.value)


def test_a_header_is_what_the_package_reads(tmp_path):
    path = tmp_path / 'x.gguf'
    writer = gguf.GGUFWriter(path, 'llama')
    for name in ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64'):
        getattr(writer, f'add_{name}')(name, 7 if name.startswith('u') else -7)
    writer.add_float32('float32', 0.1)
    writer.add_float64('float64', 0.1)
    writer.add_bool('yes', True)
    writer.add_string('text', 'naïve 東京')
    writer.add_array('texts', ['a', '', 'ü'])
    writer.add_array('numbers', [1, 2, 3])
    writer.add_array('floats', [0.5, -1.0])
    writer.add_custom_alignment(64)
    for name, shape in {'vector': (3,), 'matrix': (2, 5), 'cube': (2, 3, 4)}.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, theirs = gguf_file.read(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith('GGUF.')}
    values = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in found.metadata.items()}
    assert values == expected and {k: type(v) for k, v in values.items()} == {k: type(v) for k, v in expected.items()}
    assert {name: (one.shape, one.offset) for name, one in found.tensors.items()} == {
        one.name: (tuple(one.shape.tolist())[::-1], one.data_offset) for one in theirs.tensors
    }


def test_a_file_cut_anywhere_is_truncated(tmp_path):
    whole = tiny.golden(tmp_path / 'whole.gguf', 'llama', {'tokenizer.ggml.tokens': ['a', 'b']}).read_bytes()
    path = tmp_path / 'cut.gguf'
    for size in [*range(4, 1500, 23), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        refused(path, 'truncated or damaged')
    for content in (b'', b'GG', b'{"a": 1}', b'PK\x03\x04' + bytes(100)):
        path.write_bytes(content)
        refused(path, 'cut.gguf is not a GGUF file: it does not begin with GGUF')
    refused(tmp_path, 'is a folder. Give a GGUF file')
    refused(tmp_path / 'none.gguf', 'none.gguf does not exist. Give a GGUF file')


def test_damaged_bytes_are_found_or_harmless(tmp_path):
    """Random bytes in the header lead to a UserError of one line or to a model, and to nothing else."""
    metadata = {'tokenizer.ggml.model': 'llama', 'tokenizer.ggml.tokens': ['<unk>', '</s>', '<s>', 'a', 'b']}
    metadata |= {'tokenizer.ggml.scores': [0.0] * 5, 'tokenizer.ggml.token_type': [2, 3, 3, 1, 1]}
    whole = tiny.golden(tmp_path / 'whole.gguf', 'llama', metadata).read_bytes()
    start = min(one.offset for one in gguf_file.read(tmp_path / 'whole.gguf').tensors.values())
    rng, path = np.random.default_rng(0), tmp_path / 'damaged.gguf'
    refusals = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(4, start, rng.integers(1, 4)):
            damaged[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        path.write_bytes(damaged)
        try:
            model.read(path)
        except UserError as error:
            assert '\n' not in str(error), error
            refusals += 1
    assert 50 < refusals < 150


@pytest.mark.parametrize(
    'content, message',
    [
        (raw(metadata=2**60), 'it should have 1,152,921,504,606,846,976 metadata in 24 bytes'),
        (raw(tensors=2**63), 'it should have 9,223,372,036,854,775,808 tensors'),
        (raw(struct.pack('<Q', 2**63), bytes(64), metadata=1), 'needs 9,223,372,036,854,775,808 more'),
        (raw(text('k'), struct.pack('<IIQ', 9, 0, 2**60), bytes(64), metadata=1), 'numbers in k'),
        (raw(text('k'), struct.pack('<IIQ', 9, 8, 2**60), bytes(64), metadata=1), 'texts in k'),
        (raw(text('k'), struct.pack('<IIQ', 9, 9, 1), bytes(64), metadata=1), "an array of arrays as 'k'"),
        (raw(text('k'), struct.pack('<I', 77), bytes(64), metadata=1), "a value of the unknown type 77 as 'k'"),
        (raw(*[text('k') + struct.pack('<II', 4, 1)] * 2, metadata=2), "has 'k' twice"),
        (raw(struct.pack('<Q', 2) + b'\xff\xfe', bytes(64), metadata=1), 'not UTF-8'),
        (raw(text('general.alignment') + struct.pack('<II', 4, 3), metadata=1), 'alignment=3, expected a power'),
        (raw(text('general.alignment') + struct.pack('<II', 4, 0), metadata=1), 'alignment=0, expected a power'),
        (raw(tensor('x', [4] * 5, 0, 0), bytes(4096), tensors=1), 'gives x 5 dimensions'),
        (raw(text('x') + struct.pack('<I', 2**31), bytes(64), tensors=1), 'gives x 2,147,483,648 dimensions'),
        (
            raw(tensor('x', [2**63, 4], 0, 0), bytes(64), tensors=1),
            'x ends at byte 147,573,952,589,676,413,024, but the file has',
        ),
        (raw(tensor('x', [4], 0, 2**62), bytes(64), tensors=1), 'x ends at byte'),
        (raw(tensor('x', [0, 4], 0, 0), bytes(64), tensors=1), r'gives x the shape \[4, 0\]'),
        (raw(tensor('x', [31, 4], 8, 0), bytes(4096), tensors=1), r'gives x the shape \[4, 31\] in blocks of 32'),
        (raw(tensor('x', [8], 0, 0), tensor('x', [8], 0, 32), bytes(99), tensors=2), 'has x twice'),
        (raw(tensor('x', [8], 0, 0), tensor('y', [8], 0, 16), bytes(99), tensors=2), 'where another tensor lies'),
        (raw(tensor('x', [256], 17, 0), bytes(4096), tensors=1), 'x has the type IQ2_XS, which is not converted; exp'),
        (raw(tensor('x', [256], 99, 0), bytes(4096), tensors=1), 'type 99, .* expected one of F32, F16, BF16, Q8_0'),
        (b'GGUF' + struct.pack('<IQQ', 1, 0, 0), 'has version 1 of GGUF, expected 2 or 3'),
        (b'GGUF' + struct.pack('<IQQ', 4000, 0, 0), 'has version 4000 of GGUF, expected 2 or 3'),
        (b'GGUF' + struct.pack('>IQQ', 3, 0, 0), 'is big-endian, which is not read'),
    ],
)
def test_impossible_headers_are_one_line(tmp_path, content, message):
    (tmp_path / 'x.gguf').write_bytes(content)
    refused(tmp_path / 'x.gguf', message)


def test_a_split_model_is_read_whole(tmp_path):
    whole = convert.read(tiny.golden(tmp_path / 'whole.gguf', 'llama'), 'gguf')
    tiny.golden(tmp_path / 'part.gguf', 'llama', split_max_tensors=8)
    files = sorted(tmp_path.glob('part-*-of-00003.gguf'))
    assert len(files) == 3
    for file in files:  # any of them names the model
        convert.compare(whole, convert.read(file, 'gguf'), str(file))
    shutil.copytree(tmp_path, tmp_path / 'renamed')
    (tmp_path / 'renamed' / files[0].name).rename(tmp_path / 'renamed' / 'first.gguf')
    refused(tmp_path / 'renamed' / 'first.gguf', 'does not end in -00001-of-00003.gguf. Give the files the names')
    refused(tmp_path / 'renamed' / files[1].name, 'part-00001-of-00003.gguf is missing .1 are.. Download')
    shutil.copy(files[2], files[1])
    refused(files[0], 'part-00002-of-00003.gguf says it is file 2 of 3, expected 1 of 3')
    files[2].unlink()
    refused(files[0], 'part-00003-of-00003.gguf is missing')
