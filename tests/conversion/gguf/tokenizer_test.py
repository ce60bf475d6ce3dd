"""Tokenizers in GGUF files give the ids of the tokenizers that they were written from."""

import json

import numpy as np
import pytest

from t5flan.conversion import convert
from t5flan.conversion.gguf import tokenizer
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.errors import UserError
from tests.conversion.gguf import tiny
from tests.conversion.huggingface_tokenizer_test import decoder_model
from tests.conversion.smollm2_test import varied_texts
from tests.vocabulary import CHATML, small_vocabulary

TEXTS = [
    *varied_texts(200),
    "we'll DON'T 12345 don’t\r\n\r\n  x",
    'a  b   c',
    ' 1 22 333 4444',
    'ÅÄÖ é e\u0301 ½ ²',
    '',
]
SPECIALS = ('<|end|>', '<|im_start|>', '<|im_end|>')


def trained(splits, merges: int = 300):
    """A byte-level BPE of the `tokenizers` library, and its metadata without the name of the split."""
    tokenizers = pytest.importorskip('tokenizers')
    pre = tokenizers.pre_tokenizers
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = pre.Sequence(splits(pre, tokenizers.Regex))
    alphabet = pre.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + merges, initial_alphabet=alphabet, special_tokens=list(SPECIALS), show_progress=False
    )
    made.train_from_iterator(TEXTS * 2, trainer)
    fields = json.loads(made.to_str())['model']
    tokens = sorted(fields['vocab'], key=fields['vocab'].get)
    metadata = {
        'general.architecture': 'llama',
        'tokenizer.ggml.model': 'gpt2',
        'tokenizer.ggml.tokens': tokens,
        'tokenizer.ggml.token_type': [3 if token in SPECIALS else 1 for token in tokens],
        'tokenizer.ggml.merges': [' '.join(one) for one in fields['merges']],
        'tokenizer.ggml.bos_token_id': 1,
        'tokenizer.ggml.eos_token_id': 2,
        'tokenizer.ggml.unknown_token_id': 0,
    }
    return made, metadata


def in_bytes(pre, use_regex: bool = False):
    return pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)


# The pre-tokenizers of the models' own tokenizer.json.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r'\s*[\r\n]+|\s+(?!\S)|\s+'
)
THEIRS = {
    'gpt-2': lambda pre, regex: [in_bytes(pre, use_regex=True)],
    'smollm': lambda pre, regex: [pre.Digits(individual_digits=True), in_bytes(pre, use_regex=True)],
    'llama-bpe': lambda pre, regex: [pre.Split(regex(LLAMA_3), 'isolated'), in_bytes(pre)],
    'stablelm2': lambda pre, regex: [pre.Split(regex(LLAMA_3.replace('{1,3}', '')), 'isolated'), in_bytes(pre)],
}


def vocabulary(tmp_path, metadata):
    """The vocabulary of a model with this tokenizer."""
    held = tiny.arrays('llama')
    rows = max(300, len(metadata.get('tokenizer.ggml.tokens') or ()))
    held |= {name: np.zeros((rows, 16), np.float32) for name in ('token_embd.weight', 'output.weight')}
    path = tmp_path / 'model.gguf'
    path.unlink(missing_ok=True)
    tiny.write(path, tiny.settings('llama') | metadata, held)
    checkpoint = convert.read(path, 'gguf')
    return checkpoint.vocabulary, checkpoint


@pytest.mark.parametrize('pre', THEIRS)
def test_byte_level_bpe_gives_the_same_ids(tmp_path, pre):
    theirs, metadata = trained(THEIRS[pre])
    found, checkpoint = vocabulary(tmp_path, metadata | {'tokenizer.ggml.pre': pre})
    assert isinstance(found, TokenizerJsonVocabulary) and not checkpoint.notes
    for text in TEXTS:
        assert found.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        assert found.decode(found.encode(text)) == text.split('<|im_end|>')[0].replace('<|im_start|>', '')
    assert (found.start_id, found.eos_id, found.special_token(2)) == (1, 2, '<|im_end|>')
    assert found.conventions.add_bos == (pre == 'llama-bpe')


def test_conventions_and_the_chat_template(tmp_path):
    _, metadata = trained(THEIRS['smollm'])
    metadata |= {'tokenizer.ggml.pre': 'smollm', 'tokenizer.chat_template': CHATML}
    found, _ = vocabulary(tmp_path, metadata | {'tokenizer.ggml.add_bos_token': True, 'llama.context_length': 77})
    named = {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>', 'unk_token': '<|end|>'}
    assert found.conventions == Conventions(True, False, CHATML, named)
    convert.main(str(tmp_path / 'model.gguf'), str(tmp_path / 'hf'), 'gguf', 'hf')
    settings = json.loads((tmp_path / 'hf' / 'tokenizer_config.json').read_text())
    assert settings['add_bos_token'] and settings['model_max_length'] == 77
    assert (tmp_path / 'hf' / 'chat_template.jinja').read_text() == CHATML
    assert convert.read(tmp_path / 'hf', 'hf').vocabulary == found
    _, checkpoint = vocabulary(tmp_path, metadata | {'tokenizer.ggml.eot_token_id': 0})
    assert not checkpoint.notes and json.loads(checkpoint.extras['generation_config.json'])['eos_token_id'] == [0, 2]


def test_a_split_that_no_file_names_is_llama_cpps(tmp_path):
    _, metadata = trained(THEIRS['gpt-2'])
    for more in ({}, {'tokenizer.ggml.pre': 'default'}):
        found, checkpoint = vocabulary(tmp_path, metadata | more)
        assert found.decode(found.encode('12345 a+b!')) == '12345 a+b!'
        assert ['tokenizer.ggml.pre does not say how' in note for note in checkpoint.notes] == [True]


def without_normalization(model: bytes) -> bytes:
    """As Llama's model is: llama.cpp stores no characters to replace for one."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.precompiled_charsmap = b''
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def pieces_of(model: bytes, kind: str) -> dict:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    normalizer = proto.normalizer_spec
    names = [piece.piece for piece in proto.pieces]
    return {
        'tokenizer.ggml.model': kind,
        'tokenizer.ggml.tokens': names,
        'tokenizer.ggml.scores': [piece.score for piece in proto.pieces],
        'tokenizer.ggml.token_type': [piece.type for piece in proto.pieces],
        'tokenizer.ggml.add_space_prefix': normalizer.add_dummy_prefix,
        'tokenizer.ggml.remove_extra_whitespaces': normalizer.remove_extra_whitespaces,
        'tokenizer.ggml.bos_token_id': names.index('<s>') if '<s>' in names else None,
        'tokenizer.ggml.eos_token_id': names.index('</s>'),
    } | ({'tokenizer.ggml.precompiled_charsmap': list(normalizer.precompiled_charsmap)} if kind == 't5' else {})


def test_llamas_sentencepiece_model_gives_the_same_ids(tmp_path):
    model = without_normalization(decoder_model())
    theirs, metadata = SentencePieceVocabulary('x', 0, model=model), pieces_of(model, 'llama')
    count = len(metadata['tokenizer.ggml.tokens'])
    metadata['tokenizer.ggml.tokens'] += ['[INST]', '  ', f'[PAD{count + 2}]', f'[PAD{count + 3}]']
    metadata['tokenizer.ggml.scores'] += [-1000.0] * 4
    metadata['tokenizer.ggml.token_type'] += [3, 4, 5, 5]
    found, _ = vocabulary(tmp_path, metadata)
    assert isinstance(found, SentencePieceVocabulary) and found.vocab_size == count + 2
    for text in TEXTS:
        if '  ' not in text and text[:1] != ' ':  # no two spaces, with the one that the model adds
            assert found.encode(text) == theirs.encode(text), text
            assert found.decode(found.encode(text)) == theirs.decode(theirs.encode(text))
    assert found.encode('[INST]') == [count] and count + 1 in found.encode('a  b')
    assert (found.eos_id, found.conventions.add_bos, found.start_id) == (theirs.eos_id, True, 1)
    convert.main(str(tmp_path / 'model.gguf'), str(tmp_path / 'hf'), 'gguf', 'hf')
    assert convert.read(tmp_path / 'hf', 'hf').vocabulary == found


@pytest.mark.parametrize('as_pieces', [False, True])
def test_t5s_sentencepiece_model_gives_the_same_ids(tmp_path, as_pieces):
    """With the sentinels as llama.cpp stores them: as padding of the embedding, or as tokens that texts may spell."""
    theirs = small_vocabulary()
    metadata = pieces_of(theirs.model, 't5')
    count = theirs.base_size
    names = [f'<extra_id_{9 - i}>' if as_pieces else f'[PAD{count + i}]' for i in range(10)]
    metadata['tokenizer.ggml.tokens'] += names
    metadata['tokenizer.ggml.scores'] += [-1000.0] * 10
    metadata['tokenizer.ggml.token_type'] += [4 if as_pieces else 5] * 10
    held = tiny.arrays('t5_1_1')
    held |= {name: np.zeros((count + 10, 16), np.float32) for name in ('token_embd.weight', 'output.weight')}
    path = tiny.write(tmp_path / 'model.gguf', tiny.settings('t5_1_1') | metadata, held)
    found = convert.read(path, 'gguf').vocabulary
    assert (found.eos_id, found.vocab_size, found.sentinel_ids) == (theirs.eos_id, count + 10, theirs.sentinel_ids)
    for text in TEXTS:
        if '<extra_id_' not in text:
            assert found.encode(text) == theirs.encode(text), text
    assert found.encode('a <extra_id_0> naïve')[-1] == theirs.encode('naïve')[-1]
    assert theirs.sentinel_id(0) in found.encode('a <extra_id_0> b')


def test_a_file_without_a_tokenizer_has_ids(tmp_path):
    for more in ({}, {'tokenizer.ggml.model': 'no_vocab'}):
        found, checkpoint = vocabulary(tmp_path, more)
        assert isinstance(found, IdsVocabulary) and (found.eos_id, found.start_id) == (1, 2)
        assert 'model.gguf has no tokenizer: the result takes and returns token ids' in checkpoint.notes[0]


@pytest.mark.parametrize(
    'change, message',
    [
        ({'tokenizer.ggml.model': 'bert'}, "tokenizer.ggml.model is 'bert', which is not converted; expected gpt2, ll"),
        ({'tokenizer.ggml.pre': 'kimi-k2'}, "tokenizer.ggml.pre is 'kimi-k2', which is not converted; expected one of"),
        ({'tokenizer.ggml.merges': None}, 'tokenizer.ggml.merges should be a list of pairs of tokens'),
        ({'tokenizer.ggml.merges': ['ab', 'c d']}, 'tokenizer.ggml.merges should be a list of pairs of tokens'),
        ({'tokenizer.ggml.merges': ['☃ ☃']}, 'model.gguf holds no tokenizer'),
        ({'tokenizer.ggml.tokens': None}, 'has a tokenizer without tokenizer.ggml.tokens'),
        ({'tokenizer.ggml.token_type': [1, 2]}, 'token_type should have a number for each of the'),
        ({'tokenizer.ggml.bos_token_id': 10**6}, 'tokenizer.ggml.bos_token_id is 1000000, which is no id of the'),
        ({'tokenizer.ggml.eos_token_id': 'x'}, "tokenizer.ggml.eos_token_id is 'x', which is no id of the tokenizer"),
    ],
)
def test_a_tokenizer_that_is_not_converted_is_one_line(tmp_path, change, message):
    _, metadata = trained(THEIRS['gpt-2'], merges=5)
    with pytest.raises(UserError, match=message) as error:
        vocabulary(tmp_path, metadata | {'tokenizer.ggml.pre': 'gpt-2'} | change)
    assert '\n' not in str(error.value) and str(tmp_path / 'model.gguf') in str(error.value)
    if not any('_id' in key for key in change):
        checkpoint = convert.read(tmp_path / 'model.gguf', 'gguf', 'bytes')
        assert checkpoint.vocabulary == ByteVocabulary()


@pytest.mark.parametrize(
    'change, message',
    [
        ({'tokenizer.ggml.scores': [1.0]}, 'tokenizer.ggml.scores should have a number for each of the'),
        ({'tokenizer.ggml.scores': ['a'] * 300}, 'tokenizer.ggml.scores should have a number for each of the'),
        ({'tokenizer.ggml.token_type': [1.0] * 300}, 'token_type should have a number for each of the'),
        ({'tokenizer.ggml.token_type': [9] * 300}, 'has the type 9, which is unknown'),
        ({'tokenizer.ggml.token_type': [1] * 300}, 'is not a SentencePiece model'),
    ],
)
def test_a_broken_sentencepiece_model_is_one_line(tmp_path, change, message):
    metadata = pieces_of(decoder_model(), 'llama')
    count = len(metadata['tokenizer.ggml.tokens'])
    change = {key: value[:count] + value[:1] * (count - len(value)) * (len(value) > 9) for key, value in change.items()}
    with pytest.raises(UserError, match=message) as error:
        vocabulary(tmp_path, metadata | change)
    assert '\n' not in str(error.value)


def test_every_split_is_an_expression_that_loses_nothing():
    tokenizers = pytest.importorskip('tokenizers')
    for splits in tokenizer.SPLITS.values():
        parts = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(one), 'isolated') for one in splits]
        sequence = tokenizers.pre_tokenizers.Sequence(parts)
        for text in TEXTS:
            assert ''.join(part for part, _ in sequence.pre_tokenize_str(text)) == text
