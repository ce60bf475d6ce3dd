"""t5flan/data/preprocessing/denoisers.py: properties of every example, over thousands of random texts."""

import gzip
import json
from math import comb

import numpy as np
import pytest

from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import Denoiser, check_denoisers
from t5flan.data.preprocessing import denoising
from t5flan.data.preprocessing.denoisers import denoise, denoiser_window, target_bounds
from t5flan.data.preprocessing.examples import Context
from t5flan.data.preprocessing.joining import join_documents, run_joined
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.tasks.ul2 import denoisers
from tests.data.preprocessing.spans import restore

MODES = ('[NLU]', '[NLG]', '[S2S]')
VOCABULARY = ByteVocabulary(extra_ids=100, mode_tokens=MODES)
UL2 = {one.name: one for one in denoisers()['ul2']}
SPANS = [one for one in UL2.values() if one.kind != 'S']
LENGTHS = {'inputs': 128, 'targets': 96}
TEXTS = 300  # of each denoiser: some thousands of windows in all


def context(index=0, vocabulary=VOCABULARY, **lengths):
    return Context(vocabulary, lengths or LENGTHS, task='t', index=index)


def texts(count, longest, seed=0):
    rng = np.random.default_rng(seed)
    for index in range(count):
        yield index, rng.integers(3, 259, rng.integers(2, longest)).astype(np.int32)


def made_of(denoiser, tokens, index=0, **options):
    return denoise.bind(denoiser=denoiser).apply({'targets': tokens}, context(index, **options))


def sentinels_of(tokens):
    return [int(token) for token in tokens if VOCABULARY.base_size <= token < VOCABULARY.base_size + 100]


def rebuilt(denoiser, example):
    """The text of an example; checks its mode token and ends."""
    inputs, targets = example['inputs'], example['targets']
    assert inputs[0] == VOCABULARY.mode_token_id(denoiser.mode_token) and inputs[-1] == targets[-1] == VOCABULARY.eos_id
    assert inputs.dtype == targets.dtype == np.int32
    if denoiser.kind == 'S':
        return np.concatenate([inputs[1:-1], targets[:-1]])
    return restore(inputs[1:-1], targets[:-1], VOCABULARY)


@pytest.mark.parametrize('name', UL2)
def test_inputs_and_targets_rebuild_every_text_and_fit(name):
    denoiser = UL2[name]
    window, _ = denoiser_window(denoiser, *LENGTHS.values(), 1, 100)
    for index, tokens in texts(TEXTS, 4 * window):
        made = made_of(denoiser, tokens, index)
        np.testing.assert_array_equal(np.concatenate([rebuilt(denoiser, example) for example in made]), tokens)
        for example in made:
            assert len(example['inputs']) <= LENGTHS['inputs'] and len(example['targets']) <= LENGTHS['targets']
            if denoiser.kind != 'S':
                spans = sentinels_of(example['inputs'])
                assert spans == sentinels_of(example['targets']), 'each once on either side'
                assert spans == [VOCABULARY.sentinel_id(k) for k in range(len(spans))], 'in order'
        assert all(len(rebuilt(denoiser, example)) == window for example in made[:-2]), 'windows fill the row'


@pytest.mark.parametrize('denoiser', SPANS, ids=lambda one: one.name)
def test_density_and_spans_are_as_configured(denoiser):
    """Exactly, up to rounding to whole tokens: T5's masks have a fixed number of spans and of noise tokens."""
    size = 500
    noise, spans = denoising.noise_counts(size, denoiser.noise_density, denoiser.mean_span)
    masks = denoising.noise_masks(
        size, denoiser.noise_density, denoiser.mean_span, 2000, np.random.default_rng(0), denoiser.anywhere
    )
    starts = masks & ~np.pad(masks, ((0, 0), (1, 0)))[:, :-1]
    assert (masks.sum(1) == noise).all() and abs(noise / size - denoiser.noise_density) < 1 / size
    assert (starts.sum(1) == spans).all() and abs(noise / spans - denoiser.mean_span) < denoiser.mean_span / spans
    # The middle of a window is as noisy as the whole, within the unevenness of a few long spans.
    middle = masks[:, size // 4 : -size // 4].mean()
    assert abs(middle - denoiser.noise_density) < 0.1, middle
    assert masks[:, 0].any() == denoiser.anywhere and masks[:, -1].all() != denoiser.anywhere


@pytest.mark.parametrize('items,segments', [(85, 28), (75, 2), (250, 4), (9, 9), (5, 1)])
def test_span_lengths_are_those_of_random_divisions(items, segments):
    """A segment of a random division has l items with probability C(items-1-l, segments-2) / C(items-1, segments-1)."""
    rows = 8000
    lengths = denoising.segment_lengths(items, segments, rows, np.random.default_rng(3))
    assert lengths.shape == (rows, segments) and (lengths > 0).all() and (lengths.sum(1) == items).all()
    if segments == 1:
        return
    for length in (1, 2, 3, items // segments):
        expected = comb(items - 1 - length, segments - 2) / comb(items - 1, segments - 1)
        for place in (0, segments // 2, segments - 1):
            found = (lengths[:, place] == length).mean()
            allowed = 5 * (expected * (1 - expected) / rows) ** 0.5 + 1e-9
            assert abs(found - expected) < allowed, (length, place, found, expected)


@pytest.mark.parametrize('density', [0.1, 0.25, 0.5, 0.75])
def test_an_s_denoiser_continues_a_quarter_on_average(density):
    denoiser = Denoiser('s', 'S', noise_density=density)
    fewest, most = target_bounds(200, density)
    text = np.full(200, 9, np.int32)
    made = [made_of(denoiser, text, index, inputs=300, targets=300)[0] for index in range(3000)]
    found = np.array([len(example['targets']) - 1 for example in made])
    assert abs(found.mean() / 200 - density) < 0.01
    assert found.min() >= fewest and found.max() <= most and len(set(found)) > 0.9 * (most - fewest)


def test_a_causal_denoiser_writes_the_text_from_nothing():
    text = np.arange(10, 35, dtype=np.int32)
    made = made_of(Denoiser('c', 'C', mode_token='[NLG]'), text, inputs=4, targets=11)
    assert [example['inputs'].tolist() for example in made] == [[VOCABULARY.mode_token_id('[NLG]'), 1]] * 3
    np.testing.assert_array_equal(np.concatenate([example['targets'][:-1] for example in made]), text)
    assert [len(example['targets']) for example in made] == [11, 11, 6]
    assert all(example['targets'][-1] == 1 for example in made)


@pytest.mark.parametrize('name', UL2)
def test_the_same_seed_gives_the_same_spans(name):
    text = next(tokens for _, tokens in texts(1, 1000, seed=8))
    one, again, other = (made_of(UL2[name], text, index) for index in (3, 3, 4))
    assert [example['inputs'].tolist() for example in one] == [example['inputs'].tolist() for example in again]
    assert [example['inputs'].tolist() for example in one] != [example['inputs'].tolist() for example in other]


def test_without_a_mode_token_the_inputs_begin_with_the_text():
    plain = Denoiser('s', 'S', noise_density=0.25)
    text = np.arange(10, 30, dtype=np.int32)
    assert made_of(plain, text)[0]['inputs'][0] == 10
    optional = denoise.bind(denoiser=UL2['s'], optional_modes=MODES)
    assert optional.apply({'targets': text}, context(vocabulary=ByteVocabulary(100, ['[TOX]'])))[0]['inputs'][0] == 10
    line = r"no mode token '\[S2S\]', it has none. Set Denoiser.mode_token='' or DataConfig.mode_tokens"
    with pytest.raises(UserError, match=line):
        made_of(UL2['s'], text, vocabulary=ByteVocabulary(100))
    with pytest.raises(UserError, match=r'it has \[NLU\]'):
        optional.apply({'targets': text}, context(vocabulary=ByteVocabulary(100, ['[NLU]'])))


@pytest.mark.parametrize('extra_ids,name', [(10, 'r_3_15'), (20, 'x_3_50'), (5, 'x_8_50'), (1, 'x_3_50')])
def test_too_few_sentinels_make_shorter_windows_and_are_marked(extra_ids, name):
    """Density and span length stay as they are set."""
    few, denoiser = ByteVocabulary(extra_ids, MODES), UL2[name]
    full, _ = denoiser_window(denoiser, 512, 512, 1, 1000)
    window, shortened = denoiser_window(denoiser, 512, 512, 1, extra_ids)
    spans = lambda length: denoising.noise_counts(length, denoiser.noise_density, denoiser.mean_span)[1]
    assert shortened and window < full and spans(window) == extra_ids <= spans(window + 1)
    text = np.random.default_rng(0).integers(3, 259, 5 * window + window // 2).astype(np.int32)
    made = made_of(denoiser, text, vocabulary=few, inputs=512, targets=512)
    whole = [restore(example['inputs'][1:-1], example['targets'][:-1], few) for example in made]
    np.testing.assert_array_equal(np.concatenate(whole), text)
    assert [example.get('few_sentinels') for example in made[:5]] == [True] * 5 and 'few_sentinels' not in made[-1]


def test_ul2_on_rows_of_512_with_t5s_hundred_sentinels():
    """UL2's (3, 0.5) needs 128 spans to fill 512 inputs; for the others 100 are enough."""
    windows = {name: denoiser_window(one, 512, 512, 1, 100) for name, one in UL2.items()}
    assert [name for name, (_, shortened) in windows.items() if shortened] == ['x_3_50']
    assert windows['r_3_15'][0] == denoising.window_length(511, 512, 0.15, 3.0)
    assert denoising.noise_counts(windows['x_3_50'][0], 0.5, 3)[1] == 100


def test_an_empty_document_and_one_of_one_token_make_no_example():
    for denoiser in UL2.values():
        assert made_of(denoiser, np.zeros(0, np.int32)) == made_of(denoiser, np.array([7], np.int32)) == []
    assert made_of(Denoiser('c', 'C'), np.zeros(0, np.int32)) == []
    assert len(made_of(Denoiser('c', 'C'), np.array([7], np.int32))) == 1


@pytest.mark.parametrize(
    'settings,line',
    [
        (dict(kind='R', mean_span=3.0, noise_density=0.0), 'Denoiser.noise_density=0.0'),
        (dict(kind='X', mean_span=3.0, noise_density=1.0), 'Denoiser.noise_density=1.0'),
        (dict(kind='S', noise_density=1.5), 'Denoiser.noise_density=1.5'),
        (dict(kind='R', mean_span=0.5, noise_density=0.15), 'Denoiser.mean_span=0.5'),
        (dict(kind='R', mean_span=float('nan'), noise_density=0.15), 'Denoiser.mean_span=nan'),
        (dict(kind='R', noise_density=0.15), 'Set Denoiser.mean_span'),
        (dict(kind='S', mean_span=3.0, noise_density=0.25), 'Set Denoiser.mean_span'),
        (dict(kind='C', noise_density=0.25), 'Set Denoiser.noise_density'),
        (dict(kind='T'), 'Denoiser.kind'),
        (dict(kind='C', rate=-1.0), 'Denoiser.rate=-1.0'),
    ],
)
def test_wrong_settings_are_one_line(settings, line):
    with pytest.raises(UserError) as error:
        Denoiser('d', **settings)
    assert line in str(error.value) and '\n' not in str(error.value)


def test_wrong_mixtures_are_one_line():
    make = lambda parts: DataConfig('m', 8, LENGTHS, 'bytes', denoisers={'mine': parts})
    line = r"DataConfig.denoisers\['mine'\]: the rates of its 2 denoisers sum to 0. Set Denoiser.rate"
    with pytest.raises(UserError, match=line):
        make([Denoiser('a', 'C', rate=0), Denoiser('b', 'C', rate=0)])
    with pytest.raises(UserError, match='sum to 0'):
        make([])
    with pytest.raises(UserError, match="2 denoisers named 'a'. Set another Denoiser.name"):
        make([Denoiser('a', 'C'), Denoiser('a', 'C')])
    with pytest.raises(UserError, match='DataConfig.denoisers'):
        check_denoisers('a b', [Denoiser('a', 'C')])


@pytest.mark.parametrize(
    'one', [UL2['r_3_15'], UL2['x_64_50'], UL2['s'], Denoiser('c', 'C', mode_token='[NLG]')], ids=lambda one: one.name
)
def test_features_too_short_for_any_text(one):
    with pytest.raises(UserError, match='DataConfig.feature_lengths'):
        made_of(one, np.arange(5, 50, dtype=np.int32), inputs=1, targets=1)


# -- Compared with SeqIO and T5 ----------------------------------------------------------------------------------------


def golden(folder, name):
    with gzip.open(folder / name, 'rt', encoding='utf-8') as file:
        return [json.loads(line) for line in file]


def test_500_documents_of_c4_become_what_seqio_and_t5_make_of_them(shared):
    """Each row has the same text, lengths, spans and number of noise tokens.

    Which tokens are noise differs, because T5 draws them with TensorFlow's generator.
    """
    folder = shared / 'data' / 'golden_span_corruption'
    vocabulary = load_vocabulary(shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model')
    name = 'c4_span_corruption_t5_default_vocab_inputs_1024_targets_1024_add_eos_true_seed_94043.jsonl.gz'
    theirs = golden(folder, name)
    documents = golden(folder, 'c4_tokenized_t5_default_vocab_500_examples.jsonl.gz')
    tokens = [np.array(next(value for key, value in one.items() if key == 'targets'), np.int32) for one in documents]
    denoiser = Denoiser('t5', 'R', 3.0, 0.15)
    contexts = [Context(vocabulary, {'inputs': 1024, 'targets': 1024}, task='t', index=i) for i in range(4)]
    groups = [[{'targets': one} for one in tokens[first : first + 128]] for first in range(0, 500, 128)]
    made = run_joined([join_documents, denoise.bind(denoiser=denoiser)], groups, contexts)
    ours = [example for group in made for example in group]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):  # the file's rows are without their ends
        for feature in ('inputs', 'targets'):
            assert len(one[feature]) - 1 == len(other[feature])
        mine = restore(one['inputs'][:-1], one['targets'][:-1], vocabulary)
        other = {feature: np.array(other[feature], np.int32) for feature in ('inputs', 'targets')}
        np.testing.assert_array_equal(mine, restore(other['inputs'], other['targets'], vocabulary))
    sentinel = lambda row: [token for token in row if 32000 <= token < 32100]
    spans = [[len(sentinel(one['inputs'])) for one in rows] for rows in (ours, theirs)]
    noise = [sum(token < 32000 and token != 1 for one in rows for token in one['targets']) for rows in (ours, theirs)]
    assert sorted(spans[0]) == sorted(spans[1]) and noise[0] == noise[1]
    for row in (*ours, *theirs):
        count = len(sentinel(row['inputs']))
        assert sentinel(row['inputs']) == sentinel(row['targets']) == list(range(32099, 32099 - count, -1))
