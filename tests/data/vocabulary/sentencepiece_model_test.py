"""t5flan/data/vocabulary/sentencepiece_model.py: the ids of T5's model, and special tokens among its pieces."""

import numpy as np
import pytest

from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.errors import UserError

MODES = ('[NLU]', '[NLG]', '[S2S]')


def test_t5_ids(t5):
    assert t5.encode('Translate English to German: That is good.') == [30355, 15, 1566, 12, 2968, 10, 466, 19, 207, 5]
    assert (t5.vocab_size, t5.pad_id, t5.eos_id, t5.unk_id) == (32100, 0, 1, 2)
    assert (t5.sentinel_id(0), t5.sentinel_id(99)) == (32099, 32000)
    assert t5.decode([30355, 15, 1566, 1, 12]) == 'Translate English'
    assert t5.piece(1) == '</s>' and t5.piece(1566) == '▁English' and len(t5.proto().pieces) == 32000


def test_t5_sentinels_keep_their_ids_with_mode_tokens(t5_path):
    with_modes = load_vocabulary(t5_path, mode_tokens=MODES)
    assert with_modes.sentinel_id(0) == 32099
    assert [with_modes.mode_token_id(mode) for mode in MODES] == [32100, 32101, 32102]


def test_t5_text_with_sentinels(t5):
    text = 'Thank you <extra_id_0> me to <extra_id_1> week.'
    ids = t5.encode(text, special_tokens=True)
    assert [i for i in ids if i >= 32000] == [32099, 32098] and t5.decode(ids) == text
    assert max(t5.encode(text)) < 32000, 'training text never spells a sentinel'


def test_equal_models_are_equal_vocabularies(trained):
    again = SentencePieceVocabulary('elsewhere', 100, MODES, model=trained.model)
    assert again == trained and again.fingerprint == trained.fingerprint
    for other in (
        SentencePieceVocabulary('elsewhere', 99, MODES, model=trained.model),
        SentencePieceVocabulary('elsewhere', 100, MODES[:2], model=trained.model),
        SentencePieceVocabulary('elsewhere', 100, MODES, model=trained.model, start_id=2),
    ):
        assert other != trained and other.fingerprint != trained.fingerprint
    assert np.array_equal(again.encode_batch(['the fox'] * 40), [trained.encode('the fox')] * 40)


def test_one_line_for_a_bad_model(tmp_path):
    (tmp_path / 'text.model').write_text('no model')
    (tmp_path / 'empty.model').touch()
    for name, pattern in (
        ('nothing.model', r'nothing\.model: No such file or directory. Set another DataConfig.vocabulary'),
        ('text.model', r'text\.model is not a SentencePiece model'),
        ('empty.model', r'empty\.model is not a SentencePiece model'),
    ):
        with pytest.raises(UserError, match=pattern) as error:
            SentencePieceVocabulary(tmp_path / name)
        assert '\n' not in str(error.value)
