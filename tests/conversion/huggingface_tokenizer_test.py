"""The tokenizer files of a Hugging Face folder: which defines the ids, added tokens, BOS and templates."""

import io
import json
from pathlib import Path

import pytest

from t5flan.conversion.huggingface_tokenizer import read_vocabulary, tokenizer_files
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.errors import UserError
from tests.vocabulary import small_vocabulary

LLAMA = {'model_type': 'llama', 'bos_token_id': 256, 'eos_token_id': 257, 'vocab_size': 300}
T5 = {'model_type': 't5', 'decoder_start_token_id': 0, 'eos_token_id': 1, 'vocab_size': 400}
_EOS = {'__type': 'AddedToken', 'content': '</s>', 'special': True}
TEXTS = ['the quick <call> fox', '<s>naïve</s> 7', '<extra_id_0> and [A] <b>', '']


def byte_bpe(folder: Path, bos: str | None = None, eos: str | None = None, tokens=('<s>', '</s>'), **settings) -> Path:
    """A tokenizer.json of bytes and special tokens, whose post-processor adds `bos` and `eos`."""
    tokenizers = pytest.importorskip('tokenizers')
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(tokens))
    if bos or eos:
        single = ' '.join([f'{bos}:0'] * bool(bos) + ['$A:0'] + [f'{eos}:0'] * bool(eos))
        ids = [(token, made.token_to_id(token)) for token in (bos, eos) if token]
        template = tokenizers.processors.TemplateProcessing(single=single, pair=f'{single} $B:1', special_tokens=ids)
        byte_level = tokenizers.processors.ByteLevel(trim_offsets=False)
        made.post_processor = tokenizers.processors.Sequence([byte_level, template])
    folder.mkdir(exist_ok=True)
    made.save(str(folder / 'tokenizer.json'))
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', **settings}
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return folder


def sentencepiece_folder(folder: Path, name: str = 'spiece.model', **settings) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(small_vocabulary().model)
    (folder / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': 10} | settings))
    return folder


def decoder_model() -> bytes:
    """A BPE SentencePiece model like Llama's: <unk>, <s>, </s>, bytes."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['the quick brown fox', 'jumps over the lazy dog'] * 20),
        model_writer=model,
        model_type='bpe',
        vocab_size=310,
        byte_fallback=True,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    return model.getvalue()


@pytest.mark.parametrize(
    'bos, eos, settings, expected',
    [
        (None, None, {}, (False, False)),
        ('<s>', None, {}, (True, False)),
        (None, '</s>', {}, (False, True)),
        ('<s>', '</s>', {'bos_token': '<s>'}, (True, True)),
        ('<s>', None, {'add_bos_token': True, 'add_eos_token': False}, (True, False)),
        ('<s>', None, {'add_bos_token': False, 'bos_token': '<s>'}, (True, False)),
        (None, None, {'add_bos_token': True, 'bos_token': '<s>', 'eos_token': _EOS}, (False, False)),
        ('<s>', None, {'add_eos_token': True}, (True, False)),
    ],
)
def test_bos_and_eos_follow_the_tokenizer(tmp_path, bos, eos, settings, expected):
    folder = byte_bpe(tmp_path / 'hf', bos, eos, **settings)
    vocabulary, notes = read_vocabulary(folder, LLAMA)
    around = vocabulary.conventions.add_bos, vocabulary.conventions.add_eos
    disagreeing = [k for k, does in zip(('add_bos_token', 'add_eos_token'), expected) if settings.get(k, does) != does]
    assert (
        around == expected and len(notes) == len(disagreeing) and (vocabulary.start_id, vocabulary.eos_id) == (256, 257)
    )
    vocabulary.save(tmp_path / 'own')
    loaded = load_vocabulary(tmp_path / 'own')
    assert loaded == vocabulary and loaded.conventions == vocabulary.conventions
    back = tmp_path / 'back'
    back.mkdir()
    for name, content in tokenizer_files(loaded, 'llama', {})[0].items():
        (back / name).write_bytes(content)
    assert read_vocabulary(back, LLAMA)[0] == vocabulary
    transformers = pytest.importorskip('transformers')
    for written in (folder, back):
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(written)
        for text in TEXTS:
            ours = [256] * around[0] + vocabulary.encode(text) + [257] * around[1]
            assert theirs(text)['input_ids'] == ours


def test_the_bos_of_the_tokenizer_comes_before_that_of_config_json(tmp_path):
    folder = byte_bpe(tmp_path / 'hf', '<bos>', tokens=('<s>', '</s>', '<bos>'))
    assert read_vocabulary(folder, LLAMA)[0].start_id == 258


@pytest.mark.parametrize(
    'files, expected, noted',
    [
        ({'tokenizer_config.json': {'chat_template': 'A'}}, 'A', False),
        ({'tokenizer_config.json': {'chat_template': [{'name': 'default', 'template': 'B'}]}}, 'B', False),
        (
            {'tokenizer_config.json': {'chat_template': [{'name': n, 'template': n} for n in ('tool_use', 'default')]}},
            'default',
            True,
        ),
        ({'tokenizer_config.json': {'chat_template': 'A'}, 'chat_template.jinja': 'C\n'}, 'C\n', False),
        ({}, None, False),
    ],
)
def test_the_chat_template_is_carried(tmp_path, files, expected, noted):
    folder = byte_bpe(tmp_path / 'hf')
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / 'special_tokens_map.json').write_text('{"eos_token": {"content": "</s>"}, "pad_token": "<s>"}')
    vocabulary, notes = read_vocabulary(folder, LLAMA)
    conventions = vocabulary.conventions
    assert conventions.chat_template == expected and bool(notes) == noted
    assert conventions.named_tokens == {'eos_token': '</s>', 'pad_token': '<s>'}
    vocabulary.save(tmp_path / 'own')
    loaded = load_vocabulary(tmp_path / 'own')
    assert loaded.conventions == conventions
    written = tokenizer_files(loaded, 'llama', {})[0]
    assert written.get('chat_template.jinja', b'').decode() == (expected or '')


@pytest.mark.parametrize('listed', ['added_tokens.json', 'added_tokens_decoder', 'tokenizer.json'])
def test_added_tokens_keep_their_ids_there_and_back(tmp_path, listed):
    tokens = {'</s>': 1, '<extra_id_0>': 317, '<call>': 318, '[A]': 321}
    folder = sentencepiece_folder(tmp_path / 'hf')
    if listed == 'added_tokens.json':
        (folder / listed).write_text(json.dumps(tokens))
    elif listed == 'added_tokens_decoder':
        decoder = {str(id): {'content': token} for token, id in tokens.items()}
        (folder / 'tokenizer_config.json').write_text(json.dumps({'extra_ids': 10, 'added_tokens_decoder': decoder}))
    else:
        pieces = [[small_vocabulary().piece(id), 0.0] for id in range(small_vocabulary().base_size)]
        added = [{'id': id, 'content': token} for token, id in tokens.items()]
        fields = {'model': {'type': 'Unigram', 'vocab': pieces}, 'added_tokens': added}
        (folder / 'tokenizer.json').write_text(json.dumps(fields))
    vocabulary, notes = read_vocabulary(folder, T5)
    assert isinstance(vocabulary, SentencePieceVocabulary) and not notes
    assert vocabulary.added_tokens == {'<call>': 318, '[A]': 321} and vocabulary.vocab_size == 322
    ids = vocabulary.encode('the <call>[A]')
    assert ids[-2:] == [318, 321] and vocabulary.decode(ids).replace(' ', '') == 'the<call>[A]'
    assert vocabulary.eos_id not in vocabulary.encode('</s>')
    vocabulary.save(tmp_path / 'own')
    back = tmp_path / 'back'
    back.mkdir()
    for name, content in tokenizer_files(load_vocabulary(tmp_path / 'own'), 't5', {})[0].items():
        (back / name).write_bytes(content)
    assert read_vocabulary(back, T5)[0] == vocabulary


def test_exported_added_tokens_are_those_that_transformers_reads(tmp_path):
    transformers = pytest.importorskip('transformers')
    vocabulary = small_vocabulary().with_added_tokens(['<call>', '[A]'])
    for name, content in tokenizer_files(vocabulary, 't5', {})[0].items():
        (tmp_path / name).write_bytes(content)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ('the quick <call> fox', '[A]7<call>', 'fill <extra_id_3> in'):
        assert theirs(text)['input_ids'] == [*vocabulary.encode(text), 1]


@pytest.mark.parametrize(
    'tokens, problem',
    [
        ({'<call>': 5}, "'<call>' is given the id 5, but the id is taken"),
        ({'<call>': 318, '<other>': 318}, "'<other>' is given the id 318, but the id is taken"),
        ({'<call>': 'x'}, "'<call>' with the id 'x', expected text and a number"),
    ],
)
def test_added_tokens_with_ids_of_others_are_refused(tmp_path, tokens, problem):
    folder = sentencepiece_folder(tmp_path / 'hf')
    (folder / 'added_tokens.json').write_text(json.dumps(tokens))
    with pytest.raises(UserError, match=problem) as error:
        read_vocabulary(folder, T5)
    assert '\n' not in str(error.value)


def test_tokens_without_ids_are_appended_and_byt5s_sentinels_stay(tmp_path):
    folder = sentencepiece_folder(tmp_path / 'hf', additional_special_tokens=['<extra_id_1>', '[A]', '[B]'])
    vocabulary, _ = read_vocabulary(folder, T5)
    assert vocabulary.added_tokens == {'[A]': 318, '[B]': 319} and vocabulary.encode('<extra_id_1>') == [316]
    decoder = {str(i): {'content': token} for i, token in enumerate(['<pad>', '</s>', '<unk>'])}
    decoder |= {'259': {'content': '<extra_id_0>'}, '384': {'content': '[C]'}}
    settings = {'tokenizer_class': 'ByT5Tokenizer', 'added_tokens_decoder': decoder}
    (tmp_path / 'byt5').mkdir()
    (tmp_path / 'byt5' / 'tokenizer_config.json').write_text(json.dumps(settings))
    byt5, _ = read_vocabulary(tmp_path / 'byt5', T5)
    assert isinstance(byt5, ByteVocabulary) and byt5.encode('<extra_id_0>[C]') == [258, 384]


def test_sentinels_listed_with_ids_of_their_own(tmp_path):
    folder = sentencepiece_folder(tmp_path / 'hf')
    (folder / 'added_tokens.json').write_text(json.dumps({f'<extra_id_{k}>': 308 + k for k in range(3)}))
    vocabulary, _ = read_vocabulary(folder, T5)
    assert vocabulary.sentinel_ids == (308, 309, 310) and vocabulary.vocab_size == 311


def test_tokenizer_model_beside_tokenizer_json(tmp_path, monkeypatch):
    folder = byte_bpe(tmp_path / 'llama3', '<s>')
    (folder / 'tokenizer.model').write_text('IQ== 0\nIg== 1\n')  # tiktoken's format
    vocabulary, notes = read_vocabulary(folder, LLAMA)
    assert isinstance(vocabulary, TokenizerJsonVocabulary)
    assert len(notes) == 1 and 'tokenizer.json defines the ids; tokenizer.model has no SentencePiece pieces' in notes[0]
    (folder / 'tokenizer.model').write_bytes(small_vocabulary().model)
    vocabulary, notes = read_vocabulary(folder, LLAMA)
    assert isinstance(vocabulary, TokenizerJsonVocabulary) and 'tokenizer.model has other ids' in notes[0]


def test_an_equal_sentencepiece_model_serves_where_the_library_is_missing(tmp_path, monkeypatch):
    from t5flan.conversion import huggingface_tokenizer

    model = small_vocabulary()
    folder = sentencepiece_folder(tmp_path / 'hf', 'tokenizer.model', extra_ids=0)
    pieces = [[model.piece(id), 0.0] for id in range(model.base_size)]
    special = {'SpecialToken': {'id': '</s>', 'type_id': 0}}
    processor = {'type': 'TemplateProcessing', 'single': [special, {'Sequence': {'id': 'A', 'type_id': 0}}]}
    added = [{'id': 308, 'content': '<call>'}]
    fields = {'model': {'vocab': pieces}, 'post_processor': processor, 'added_tokens': added}
    (folder / 'tokenizer.json').write_text(json.dumps(fields))
    monkeypatch.setattr(huggingface_tokenizer.importlib.util, 'find_spec', lambda name: None)
    vocabulary, notes = read_vocabulary(folder, LLAMA | {'bos_token_id': 1, 'eos_token_id': 1})
    assert isinstance(vocabulary, SentencePieceVocabulary) and vocabulary.added_tokens == {'<call>': 308}
    assert vocabulary.conventions.add_bos and 'which has the ids of tokenizer.json' in notes[0]


def test_llamas_sentencepiece_folder_there_and_back(tmp_path):
    folder = tmp_path / 'hf'
    folder.mkdir()
    (folder / 'tokenizer.model').write_bytes(decoder_model())
    (folder / 'added_tokens.json').write_text('{"<pad>": 400}')
    for settings, add_bos in (({}, True), ({'add_bos_token': False}, False)):
        (folder / 'tokenizer_config.json').write_text(json.dumps({'tokenizer_class': 'LlamaTokenizer'} | settings))
        vocabulary, _ = read_vocabulary(folder, LLAMA | {'bos_token_id': 1, 'eos_token_id': 2})
        assert (vocabulary.conventions.add_bos, vocabulary.start_id, vocabulary.vocab_size) == (add_bos, 1, 401)
        back = tmp_path / f'back_{add_bos}'
        back.mkdir()
        for name, content in tokenizer_files(vocabulary, 'llama', {})[0].items():
            (back / name).write_bytes(content)
        assert read_vocabulary(back, LLAMA | {'bos_token_id': 1, 'eos_token_id': 2})[0] == vocabulary


@pytest.mark.parametrize('add_bos', [True, False])
def test_a_decoders_own_vocabulary_there_and_back(tmp_path, add_bos):
    vocabulary = small_vocabulary().with_conventions(Conventions(add_bos=add_bos, chat_template='T'))
    for name, content in tokenizer_files(vocabulary, 'llama', {})[0].items():
        (tmp_path / name).write_bytes(content)
    again, notes = read_vocabulary(tmp_path, LLAMA | {'bos_token_id': 0, 'eos_token_id': 1})
    assert again == vocabulary and again.conventions.chat_template == 'T' and not notes
