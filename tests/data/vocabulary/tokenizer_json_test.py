"""t5flan/data/vocabulary/tokenizer_json.py: a tokenizer.json encodes text, spelled special tokens and sentinels."""

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


def test_no_text_is_lost_and_special_tokens_are_read_only_on_request(vocabulary):
    text = 'naïve <extra_id_1> 日本\n'
    assert vocabulary.decode(vocabulary.encode(text)) == text == vocabulary.decode(vocabulary.encode(text, True))
    assert max(vocabulary.encode(text)) < 256 and max(vocabulary.encode(text, special_tokens=True)) == 259
    assert vocabulary.encode_batch([text, 'a']) == [vocabulary.encode(text), vocabulary.encode('a')]


def test_sentinels_and_decoding_up_to_the_end(vocabulary):
    assert (vocabulary.vocab_size, vocabulary.sentinel_count, vocabulary.sentinel_id(1)) == (260, 2, 259)
    with pytest.raises(UserError, match='sentinel 2 is needed, the vocabulary has 2'):
        vocabulary.sentinel_id(2)
    words = vocabulary.encode('words')
    assert vocabulary.decode([256, *words, 257, *words]) == 'words', 'without the start token, up to the end'
    assert vocabulary.decode([*words, 9999, -1]) == 'words'


def test_saved_and_loaded_are_equal(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = load_vocabulary(tmp_path)
    assert loaded == vocabulary and loaded.fingerprint == vocabulary.fingerprint
    assert loaded.content == vocabulary.content and (loaded.eos_id, loaded.start_id) == (257, 256)


def test_one_line_for_a_bad_file(tmp_path):
    (tmp_path / 'tokenizer.json').write_text('{}')
    for name, pattern in (('none.json', 'none.json: No such file'), ('tokenizer.json', 'holds no tokenizer')):
        with pytest.raises(UserError, match=pattern) as error:
            TokenizerJsonVocabulary(tmp_path / name, 1)
        assert '\n' not in str(error.value)
