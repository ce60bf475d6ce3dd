"""t5flan/data/vocabulary/tokenizer_json.py: a tokenizer.json encodes text, spelled special tokens and sentinels."""

import json

import pytest

from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.errors import UserError

tokenizers = pytest.importorskip('tokenizers')


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
    """A byte-level BPE without merges: ids 0 to 255 are bytes, 256 to 259 special tokens."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(['<s>', '</s>', '<extra_id_0>', '<extra_id_1>'])
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    made.save(str(path))
    return TokenizerJsonVocabulary(path, eos_id=257, start_id=256)


def test_no_text_is_lost_and_special_tokens_are_read_as_in_transformers(vocabulary):
    text = 'naïve <extra_id_1> 日本\n'
    [literal] = vocabulary.encode_literally([text])
    assert vocabulary.decode(vocabulary.encode(text)) == text == vocabulary.decode(literal)
    assert max(literal) < 256 and max(vocabulary.encode(text)) == 259
    assert vocabulary.encode_batch([text, 'a']) == [vocabulary.encode(text), vocabulary.encode('a')]
    assert vocabulary.encode('a</s>')[-1] == 257 and vocabulary.encode('half \ud83d') == vocabulary.encode('half ?')


def test_added_tokens_become_tokens_of_the_file(vocabulary, tmp_path):
    more = vocabulary.with_added_tokens(['<call>', '<extra_id_2>', '</s>'])
    assert (more.vocab_size, more.sentinel_count, more.sentinel_id(2)) == (262, 3, 261)
    assert more.encode('a<call>b') == [*vocabulary.encode('a'), 260, *vocabulary.encode('b')]
    assert tokenizers.Tokenizer.from_buffer(more.content).token_to_id('<call>') == 260, 'others read them too'
    assert more.tokens_added_to(vocabulary) == ('<call>', '<extra_id_2>') and vocabulary.tokens_added_to(more) is None
    more.save(tmp_path)
    assert load_vocabulary(tmp_path) == more == load_vocabulary(tmp_path, added_tokens=('<call>',))
    for given, problem in (({'<x>': 263}, 'no id just before'), ({'<x>': 3}, 'id is taken'), ({'<s>': 7}, 'id 256')):
        with pytest.raises(UserError, match=problem):
            vocabulary.with_added_tokens(given)


def test_sentinels_and_decoding_up_to_the_end(vocabulary):
    assert (vocabulary.vocab_size, vocabulary.sentinel_count, vocabulary.sentinel_id(1)) == (260, 2, 259)
    with pytest.raises(UserError, match='sentinel 2 is needed, the vocabulary has 2'):
        vocabulary.sentinel_id(2)
    words = vocabulary.encode('words')
    assert vocabulary.decode([256, *words, 257, *words]) == 'words', 'without the start token, up to the end'
    assert vocabulary.decode([*words, 9999, -1]) == 'words'
    assert vocabulary.spell([256, *words, 257, *words, 9999]) == '<s>words</s>words'


def test_saved_and_loaded_are_equal(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = load_vocabulary(tmp_path)
    assert loaded == vocabulary and loaded.fingerprint == vocabulary.fingerprint
    assert loaded.content == vocabulary.content and (loaded.eos_id, loaded.start_id) == (257, 256)


def test_comparing_and_hashing_parse_the_file_once(vocabulary, monkeypatch):
    other = TokenizerJsonVocabulary(None, vocabulary.eos_id, vocabulary.start_id, content=vocabulary.content + b' ')
    assert hash(other) == hash(vocabulary) and other == vocabulary
    monkeypatch.setattr(json, 'loads', None)  # parsing a file of megabytes for every prompt took most of the time
    assert hash(other) == hash(vocabulary) and other == vocabulary and {vocabulary: 1}[other] == 1


def test_one_line_for_a_bad_file(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{}')
    for name, pattern in (('none.json', 'none.json: No such file'), ('tokenizer.json', 'holds no tokenizer')):
        with pytest.raises(UserError, match=pattern) as error:
            TokenizerJsonVocabulary(tmp_path / name, 1)
        assert '\n' not in str(error.value)
