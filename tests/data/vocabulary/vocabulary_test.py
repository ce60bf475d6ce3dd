"""t5flan/data/vocabulary/vocabulary.py: T5's ids, texts that survive, sentinels and mode tokens, one clear line for a bad file."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.training import train_sentencepiece
from t5flan.errors import UserError

SYLLABLES = 'the qui ck brown fox jump s over la zy dog whi le seven wiz ards li quor ju gs'.split()
WORDS = [''.join(random.Random(i).choices(SYLLABLES, k=3)) for i in range(400)] + ['the', 'fox']
TEXTS = [' '.join(random.Random(i).choices(WORDS, k=12)) + f' {i}.\nNext: {{x}}' for i in range(300)]
MODES = ('[NLU]', '[NLG]', '[S2S]')


@pytest.fixture(scope='module')
def trained() -> SentencePieceVocabulary:
    return train_sentencepiece(TEXTS, 500)


@pytest.fixture(scope='module')
def t5(shared) -> SentencePieceVocabulary:
    return load_vocabulary(shared / 'data' / 'vocab' / 't5_cc_all_32000' / 'sentencepiece.model')


def test_t5_ids(t5):
    assert t5.encode('Translate English to German: That is good.') == [30355, 15, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert (t5.vocab_size, t5.pad_id, t5.eos_id, t5.unk_id) == (32100, 0, 1, 2)
    assert (t5.sentinel_id(0), t5.sentinel_id(99)) == (32099, 32000)
    assert t5.decode([30355, 15, 1566, 1, 12]) == 'Translate English'


def test_t5_sentinels_keep_their_ids_beside_mode_tokens(shared):
    with_modes = load_vocabulary(shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model', mode_tokens=MODES)
    assert with_modes.sentinel_id(0) == 32099
    assert [with_modes.mode_token_id(mode) for mode in MODES] == [32100, 32101, 32102]


def test_t5_text_with_sentinels(t5):
    ids = t5.encode('Thank you <extra_id_0> me to <extra_id_1> week.', special_tokens=True)
    assert [i for i in ids if i >= 32000] == [32099, 32098]
    assert t5.decode(ids) == 'Thank you <extra_id_0> me to <extra_id_1> week.'
    assert not [i for i in t5.encode('Thank you <extra_id_0> me') if i >= 32000], (
        'text of the training data names no sentinel'
    )


@pytest.mark.parametrize(
    'text',
    [
        'plain words',
        ' led by a space',
        'ended by one ',
        'two  spaces\tand a tab',
        'lines\n\n\nand\r\nlines\n',
        '',
        '\n',
        'naïve 안녕 日本 🙂',
        'a\u2028b',
        '{braces} <tags> 12345',
        'a\x00b',
    ],
)
def test_no_text_is_lost(trained, text):
    assert trained.decode(trained.encode(text)) == text
    assert ByteVocabulary().decode(ByteVocabulary().encode(text)) == text


def test_random_text_is_not_lost(trained):
    rng = random.Random(0)
    for _ in range(200):
        text = ''.join(
            chr(rng.choice([rng.randrange(1, 127), rng.randrange(160, 0x2580), rng.randrange(0x3040, 0xD000)]))
            for _ in range(30)
        )
        assert trained.decode(trained.encode(text)) == text


def test_trained_vocabulary(trained):
    assert trained.vocab_size == 500
    assert trained.sentinel_id(0) == 500 - 3 - 1
    assert trained.mode_token_id('[NLU]') == 497
    pieces = [trained._processor.id_to_piece(i) for i in trained.encode('box 1984\n')]
    assert pieces[-5:] == ['1', '9', '8', '4', '\n'], 'digits stand alone, the newline is a piece'
    assert trained == train_sentencepiece(TEXTS, 500), 'the same text gives the same vocabulary'
    assert trained != train_sentencepiece(TEXTS, 500, mode_tokens=())


def test_special_tokens_in_text(trained):
    text = '[NLU] fill <extra_id_0> in\nthe <extra_id_12> gap'
    ids = trained.encode(text, special_tokens=True)
    assert [i for i in ids if i >= trained.base_size] == [
        trained.mode_token_id('[NLU]'),
        trained.sentinel_id(0),
        trained.sentinel_id(12),
    ]
    assert trained.decode(ids) == text


def test_decode_is_for_whatever_a_model_makes(trained):
    words = trained.encode('the fox')
    assert trained.decode(np.array([*words, 0, 0, trained.eos_id, 5, 6])) == 'the fox'
    assert trained.decode([*words, 10_000]) == 'the fox \ufffd'
    assert trained.decode([]) == trained.decode([0, 0]) == ''
    assert ByteVocabulary().decode([198, 113]) == '\ufffdn', 'half a character'


def test_batches_equal_single_texts(trained):
    for vocabulary in (trained, ByteVocabulary()):
        assert vocabulary.encode_batch(TEXTS[:20]) == [vocabulary.encode(text) for text in TEXTS[:20]]


def test_bytes_as_in_byt5():
    vocabulary = ByteVocabulary()
    assert vocabulary.encode('né') == [113, 198, 172]
    assert (vocabulary.vocab_size, vocabulary.sentinel_id(0), vocabulary.sentinel_id(1)) == (259, 258, 257)
    with_own = ByteVocabulary(extra_ids=100, mode_tokens=MODES)
    assert (with_own.vocab_size, with_own.sentinel_id(0), with_own.sentinel_id(99)) == (362, 358, 259)
    assert with_own.decode(with_own.encode('a<extra_id_3>[S2S]b', special_tokens=True)) == 'a<extra_id_3>[S2S]b'


def test_saved_and_loaded(trained, tmp_path):
    for vocabulary in (trained, ByteVocabulary(7, ('[X]',))):
        folder = tmp_path / type(vocabulary).__name__
        vocabulary.save(folder)
        loaded = load_vocabulary(folder)
        assert (
            loaded == vocabulary and hash(loaded) == hash(vocabulary) and loaded.fingerprint == vocabulary.fingerprint
        )
    trained.save_model(tmp_path / 'mine.model')
    assert load_vocabulary(tmp_path / 'mine.model') == trained, (
        'F.json beside F.model tells the sentinels and mode tokens'
    )


def test_one_line_for_a_bad_vocabulary(trained, tmp_path):
    def fails(pattern, *arguments, **options):
        with pytest.raises(UserError, match=pattern) as error:
            load_vocabulary(*arguments, **options)
        assert '\n' not in str(error.value)

    fails(r'nothing\.model: No such file', tmp_path / 'nothing.model')
    (tmp_path / 'text.model').write_text('no model')
    fails(r'text\.model is not a SentencePiece model', tmp_path / 'text.model')
    (tmp_path / 'empty.model').touch()
    fails('is not a SentencePiece model', tmp_path / 'empty.model')
    fails(r'has no vocabulary\.json', tmp_path)
    trained.save(tmp_path)
    fails('mode_tokens', tmp_path, mode_tokens=('[A]',))
    described = json.loads((tmp_path / 'vocabulary.json').read_text())
    (tmp_path / 'vocabulary.json').write_text(json.dumps(described | {'vocab_size': 9}))
    fails('not one vocabulary', tmp_path)
    (tmp_path / 'vocabulary.json').write_text('{')
    fails('does not describe a vocabulary', tmp_path)
    fails('different words', 'bytes', mode_tokens=('[A]', '[A]'))


def test_sentinels_and_modes_that_are_not_there(trained):
    with pytest.raises(UserError, match='sentinel 100 is needed, the vocabulary has 100'):
        trained.sentinel_id(100)
    with pytest.raises(UserError, match=r"mode token '\[Q\]' is none"):
        trained.mode_token_id('[Q]')


def test_sizes_that_do_not_suit_the_text():
    with pytest.raises(UserError, match='more than this text can fill: (\\d+) at most') as error:
        train_sentencepiece(TEXTS, 30_000)
    most = int(str(error.value).split(' at most')[0].split()[-1])
    assert train_sentencepiece(TEXTS, most).vocab_size == most
    with pytest.raises(UserError, match='too small for this text') as error:
        train_sentencepiece(TEXTS, 200)
    least = int(str(error.value).split(' at least')[0].split()[-1])
    assert train_sentencepiece(TEXTS, least).vocab_size == least
    with pytest.raises(UserError, match='text is empty'):
        train_sentencepiece(['', '\n'], 500)


def test_reading_a_vocabulary_imports_no_tensorflow(trained, tmp_path):
    trained.save(tmp_path)
    program = (
        f'import sys; from t5flan.data.vocabulary.loading import load_vocabulary; load_vocabulary({str(tmp_path)!r}).encode("a"); '
        'assert not {"tensorflow", "seqio", "jax"} & set(sys.modules), "heavy"'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
