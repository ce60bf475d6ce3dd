"""t5flan/data/vocabulary/vocabulary.py: properties of all vocabularies: no text is lost, special tokens, saving."""

import random

import numpy as np
import pytest

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.errors import UserError

TEXTS = [
    'plain words',
    ' leading space',
    'trailing space ',
    'two  spaces\tand a tab',
    'lines\n\n\nand\r\nlines\n',
    '',
    '\n',
    'naïve 안녕 日本 🙂',
    'a\u2028b',
    '{braces} <tags> 12345',
    'a\x00b',
]


@pytest.mark.parametrize('text', TEXTS)
def test_no_text_is_lost(trained, text):
    assert trained.decode(trained.encode(text)) == text
    assert ByteVocabulary().decode(ByteVocabulary().encode(text)) == text


def test_random_text_is_not_lost(trained):
    rng = random.Random(0)
    for _ in range(200):
        ranges = [(1, 127), (160, 0x2580), (0x3040, 0xD000)]
        text = ''.join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(30))
        assert trained.decode(trained.encode(text)) == text


def test_arrays_are_the_ids_of_lists(trained):
    texts = [*TEXTS, '[NLU] fill <extra_id_0>', *(f'word {i}' for i in range(40))]
    for vocabulary in (trained, ByteVocabulary(), ByteVocabulary(10, ('[NLU]',))):
        for some in (texts, TEXTS, texts[-40:], [''], []):
            arrays, lists = vocabulary.encode_arrays(some), vocabulary.encode_batch(some)
            assert [ids.tolist() for ids in arrays] == lists
            assert all(ids.dtype == np.int32 and ids.flags.writeable and ids.flags.owndata for ids in arrays)


def test_special_tokens_in_text(trained):
    text = '[NLU] fill <extra_id_0> in\nthe <extra_id_12> gap'
    ids = trained.encode(text)
    special = [trained.mode_token_id('[NLU]'), trained.sentinel_id(0), trained.sentinel_id(12)]
    assert [i for i in ids if i >= trained.base_size] == special
    assert trained.decode(ids) == text


def test_a_prompt_is_spelled_with_the_ends_inside_it(trained):
    for vocabulary, text in ((trained, 'a <extra_id_0>'), (ByteVocabulary(), 'a b')):
        ids = [*vocabulary.encode(text), vocabulary.eos_id, *vocabulary.encode('b')]
        assert vocabulary.spell(ids) == f'{text}</s>b' and vocabulary.decode(ids) == text
        assert vocabulary.spell([]) == '' and vocabulary.spell(np.array(ids[:2])) == vocabulary.decode(ids[:2])


def test_any_ids_of_a_model_can_be_decoded(trained):
    words = trained.encode('the fox')
    assert trained.decode(np.array([*words, 0, 0, trained.eos_id, 5, 6])) == 'the fox'
    assert trained.decode([*words, 10_000]) == 'the fox \ufffd'
    assert trained.decode([]) == trained.decode([0, 0]) == ''
    assert ByteVocabulary().decode([198, 113]) == '\ufffdn', 'half a character'


def test_batches_equal_single_texts(trained):
    texts = [f'{text} {i}' for i in range(4) for text in TEXTS]
    for vocabulary in (trained, ByteVocabulary()):
        assert vocabulary.encode_batch(texts) == [vocabulary.encode(text) for text in texts]


def test_saved_and_loaded_are_equal(trained, tmp_path):
    for vocabulary in (trained, ByteVocabulary(7, ('[X]',))):
        folder = tmp_path / type(vocabulary).__name__
        vocabulary.save(folder)
        loaded = load_vocabulary(folder)
        assert loaded == vocabulary and hash(loaded) == hash(vocabulary)
        assert loaded.fingerprint == vocabulary.fingerprint
    trained.save_model(tmp_path / 'mine.model')
    loaded = load_vocabulary(tmp_path / 'mine.model')
    assert loaded == trained, 'F.json beside F.model has the sentinels and mode tokens'


@pytest.mark.parametrize('kind', ['trained', 'bytes'])
def test_added_tokens_follow_all_others_and_change_no_text_without_them(trained, tmp_path, kind):
    old = trained if kind == 'trained' else ByteVocabulary(5, ('[X]',))
    more = old.with_added_tokens(['<call>', '<calls>', '[M]'])
    assert [more.encode(token) for token in ('<call>', '<calls>', '[M]')] == [[old.vocab_size + i] for i in range(3)]
    assert more.vocab_size == old.vocab_size + 3 and more.encode_batch(TEXTS) == old.encode_batch(TEXTS)
    text = 'the <calls> fox <extra_id_0> [M] end'
    assert more.decode(more.encode(text)) == text
    assert more.with_added_tokens(['[M]']) is more and more.fingerprint != old.fingerprint
    assert more.tokens_added_to(old) == ('<call>', '<calls>', '[M]')
    assert old.tokens_added_to(more) is None and more.tokens_added_to(ByteVocabulary(9)) is None
    more.save(tmp_path)
    assert load_vocabulary(tmp_path) == more == load_vocabulary(tmp_path, added_tokens=('<call>',))
    gap = old.with_added_tokens({'<a>': old.vocab_size + 5})
    assert gap.vocab_size == old.vocab_size + 6 and gap.encode('<a>') == [old.vocab_size + 5]
    with pytest.raises(UserError, match="'<b>' is given the id 5, but the id is taken"):
        old.with_added_tokens({'<b>': 5})
    with pytest.raises(UserError, match="added token ''"):
        old.with_added_tokens([''])


def test_conventions_are_saved_and_change_the_fingerprint_only_where_ids_change(trained, tmp_path):
    template = 'x{{ messages }}'
    changed = trained.with_conventions(Conventions(chat_template=template, named_tokens={'eos_token': '</s>'}))
    assert changed.fingerprint == trained.fingerprint and trained.conventions == Conventions()
    plain = changed.with_conventions(Conventions(add_bos=False, add_eos=True, chat_template=template))
    assert plain != trained
    for vocabulary in (changed, plain):
        vocabulary.save(tmp_path)
        loaded = load_vocabulary(tmp_path)
        assert loaded == vocabulary and loaded.conventions == vocabulary.conventions
    assert (tmp_path / 'chat_template.jinja').read_text() == template


def test_a_rendered_template_may_spell_control_tokens(trained):
    ends = [trained.eos_id, *trained.encode('fox'), trained.mode_token_id('[NLU]'), trained.eos_id]
    assert trained.encode_rendered('</s>fox[NLU]</s>') == ends
    assert trained.eos_id not in trained.encode('</s>fox[NLU]</s>')


def test_missing_sentinels_and_mode_tokens_are_one_line(trained):
    with pytest.raises(UserError, match='sentinel 100 is needed, the vocabulary has 100'):
        trained.sentinel_id(100)
    with pytest.raises(UserError, match=r"mode token '\[Q\]' is not one of .*'\[NLU\]'"):
        trained.mode_token_id('[Q]')
    with pytest.raises(UserError, match='must be different words'):
        load_vocabulary('bytes', mode_tokens=('[A]', '[A]'))
