"""t5flan/data/vocabulary/byte_level.py: ByT5's ids, and ids without text."""

import pytest

from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError


def test_bytes_as_in_byt5():
    vocabulary = ByteVocabulary()
    assert vocabulary.encode('né') == [113, 198, 172]
    assert (vocabulary.vocab_size, vocabulary.sentinel_id(0), vocabulary.sentinel_id(1)) == (259, 258, 257)
    with_own = ByteVocabulary(extra_ids=100, mode_tokens=('[NLU]', '[NLG]', '[S2S]'))
    assert (with_own.vocab_size, with_own.sentinel_id(0), with_own.sentinel_id(99)) == (362, 358, 259)
    assert with_own.decode(with_own.encode('a<extra_id_3>[S2S]b')) == 'a<extra_id_3>[S2S]b'


def test_half_a_surrogate_pair_is_no_error():
    assert ByteVocabulary().encode('\ud83d') == [0xED + 3, 0xA0 + 3, 0xBD + 3]


def test_ids_without_text(tmp_path):
    vocabulary = IdsVocabulary(32128, eos_id=2, start_id=1)
    vocabulary.save(tmp_path)
    loaded = load_vocabulary(tmp_path)
    assert loaded == vocabulary and (loaded.vocab_size, loaded.eos_id, loaded.start_id) == (32128, 2, 1)
    for use in (lambda: loaded.encode('a'), lambda: loaded.decode([5])):
        with pytest.raises(UserError, match='has no vocabulary to encode or decode text with. Convert it again'):
            use()
