"""t5flan/data/vocabulary/sentencepiece_model.py: the ids of T5's model, and special tokens among its pieces."""

import random

import numpy as np
import pytest

from t5flan.data.preprocessing.denoising import corrupt_rows
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
    ids = t5.encode(text)
    assert [i for i in ids if i >= 32000] == [32099, 32098] and t5.decode(ids) == text
    assert t5.encode_batch([text, 'week', text])[::2] == [ids, ids], 'one text has one encoding, also in a batch'
    assert max(t5.encode_literally([text])[0]) < 32000
    assert t5.eos_id not in t5.encode('the end </s>'), 'no text ends a sequence, as in SeqIO'


def model_with(symbols: list[str], **options) -> bytes:
    """A SentencePiece model of 340 pieces, some of them given."""
    import io

    import sentencepiece

    model = io.BytesIO()
    lines = [
        ' '.join(random.Random(i).choices(['the', 'fox', 'quick', 'brown', 'lazy', 'dogs'], k=9)) for i in range(99)
    ]
    sizes = {'vocab_size': 340, 'byte_fallback': True, 'minloglevel': 2} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        user_defined_symbols=symbols,
        hard_vocab_limit=False,
        **sizes,
    )
    return model.getvalue()


@pytest.mark.parametrize('spelling', ['<extra_id_{}>', '\u2581<extra_id_{}>'])
def test_sentinels_among_the_pieces_count(tmp_path, spelling):
    symbols = [spelling.format(k) for k in range(19, -1, -1)]
    (tmp_path / 'own.model').write_bytes(model_with(symbols))
    loaded = load_vocabulary(tmp_path / 'own.model')
    assert loaded.extra_ids == 0 and loaded.sentinel_count == 20, 'none are appended to those of the model'
    assert [loaded.piece(loaded.sentinel_id(k)) for k in (0, 1, 19)] == [spelling.format(k) for k in (0, 1, 19)]
    text = 'the <extra_id_0> fox <extra_id_19> dogs'
    ids = loaded.encode(text)
    expected = [*loaded.encode('the'), loaded.sentinel_id(0), *loaded.encode('fox'), loaded.sentinel_id(19)]
    assert ids == [*expected, *loaded.encode('dogs')] and loaded.decode(ids) == text
    with pytest.raises(UserError, match='sentinel 20 is needed, the vocabulary has 20'):
        loaded.sentinel_id(20)
    noise = np.array([[False, True, False, True, True]])
    inputs, targets = corrupt_rows(np.array([[30, 31, 32, 33, 34]]), noise, loaded)
    assert inputs[0].tolist() == [30, loaded.sentinel_id(0), 32, loaded.sentinel_id(1)]
    assert targets[0].tolist() == [loaded.sentinel_id(0), 31, loaded.sentinel_id(1), 33, 34]
    appended = SentencePieceVocabulary('old', 100, model=model_with(symbols))
    assert appended.sentinel_id(0) == appended.vocab_size - 1, 'an older checkpoint keeps those it was trained with'
    loaded.save(tmp_path / 'saved')
    assert load_vocabulary(tmp_path / 'saved') == loaded


def test_a_model_that_adds_no_space_keeps_the_spaces_around_special_tokens(tmp_path):
    gemma = SentencePieceVocabulary(
        'x', 2, ('[A]',), model=model_with([], add_dummy_prefix=False, remove_extra_whitespaces=False)
    )
    for text in ('the [A] fox', 'the[A]fox', '[A] the  <extra_id_1>fox '):
        assert gemma.decode(gemma.encode(text)) == text


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
