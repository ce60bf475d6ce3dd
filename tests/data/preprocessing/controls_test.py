"""t5flan/data/preprocessing/controls.py: the configured share of texts get the control token for their score.

No control token, mode token or other marker is ever noise, and each governs only its own document.
"""

import json

import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import Control, Denoiser, TextFiles
from t5flan.data.preprocessing import denoising
from t5flan.data.preprocessing.controls import PREFIX, PREFIX_LOSS_WEIGHTS, pieces, token_of
from t5flan.data.preprocessing.denoisers import denoise
from t5flan.data.preprocessing.examples import Context
from t5flan.data.preprocessing.features import LOSS_WEIGHTS
from t5flan.data.preprocessing.joining import join_documents, run_joined
from t5flan.data.preprocessing.tokenization import append_eos
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import register_all

TOKENS = ('[TOX_LOW]', '[TOX_MID]', '[TOX_HIGH]')
VOCABULARY = ByteVocabulary(100, TOKENS)
ROWS = [{'text': f'Text number {i}, of some length.', 'scores': {'toxicity': i % 10 / 10}} for i in range(400)]


def control(**options):
    return Control(**{'field': 'scores.toxicity', 'tokens': TOKENS, 'thresholds': (0.3, 0.7)} | options)


def examples_of(tmp_path, name, rows=ROWS, vocabulary=VOCABULARY, objective='causal_lm', concatenate=1, **options):
    path = tmp_path / f'{name}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    files = TextFiles(name, str(path), validation=str(path), controls=(control(**options),))
    settings = DataConfig(
        f'{name}_{objective}',
        8,
        {'inputs': 128, 'targets': 128},
        'bytes',
        text_files=(files,),
        format='causal_lm',
        concatenate=concatenate,
    )
    register_all(settings)
    return eval_examples(settings, vocabulary)


def test_thresholds_separate_the_tokens():
    low, mid, high = TOKENS
    found = [token_of(score, control()) for score in (-1, 0, 0.29, 0.3, 0.69, 0.7, 9)]
    assert found == [low, low, low, mid, mid, high, high]


def test_every_text_may_get_the_token_of_its_score(tmp_path):
    found = examples_of(tmp_path, 'control_all', share=1.0)
    for row, one in zip(ROWS, found, strict=True):
        token = token_of(row['scores']['toxicity'], control())
        assert VOCABULARY.decode(one['targets']) == token + row['text']
        assert one['targets'][0] == VOCABULARY.mode_token_id(token), 'one id, not its letters'


@pytest.mark.parametrize('share', [0.0, 0.05, 0.5])
def test_the_share_of_texts_is_as_configured_and_the_same_each_time(tmp_path, share):
    name = f'control_{int(share * 100)}'
    marked = [one['targets'][0] >= 359 for one in examples_of(tmp_path, name, share=share)]
    assert abs(np.mean(marked) - share) < 4 * (share * (1 - share) / len(ROWS)) ** 0.5 + 1e-9
    assert marked == [one['targets'][0] >= 359 for one in examples_of(tmp_path, name, share=share)]


@pytest.mark.parametrize('concatenate', [1, 128])
@pytest.mark.parametrize(
    'objective', ['ul2_r_3_15', 'ul2_x_3_50', 'ul2_x_64_50', 'ul2_s', 'span_corruption', 'prefix_lm']
)
def test_a_span_never_hides_the_token(tmp_path, objective, concatenate):
    """The joined documents of runs/ul2 too: each one's first token is its own."""
    name = f'control_{objective}_{concatenate}'
    found = examples_of(tmp_path, name, objective=objective, concatenate=concatenate, share=1.0)
    assert len(found) == len(ROWS)
    for one in found:
        assert one['inputs'][0] >= 359 and not (one['targets'] >= 359).any() and (one['inputs'] >= 359).sum() == 1


MODES = ByteVocabulary(100, ('[NLU]', '[NLG]', '[S2S]', *TOKENS))
MARKERS = MODES.marker_ids


def random_objective(rng):
    """Any denoiser or objective, with its name."""
    kind = str(rng.choice(['span_corruption', 'prefix_lm', 'R', 'X', 'S', 'C']))
    if kind in ('span_corruption', 'prefix_lm'):
        return [getattr(denoising, kind), append_eos]
    spans = {'mean_span': float(rng.choice([1, 3, 8, 64]))} if kind in 'RX' else {}
    density = {'noise_density': float(rng.choice([0.05, 0.15, 0.5, 0.9]))} if kind != 'C' else {}
    mode = str(rng.choice(['', '[NLU]', '[S2S]']))
    return [
        denoise.bind(denoiser=Denoiser('d', kind, anywhere=bool(rng.integers(2)), mode_token=mode, **spans, **density))
    ]


def random_documents(rng, count):
    """Texts of bytes with a number of its own each; some with control tokens before them, some with markers inside."""
    for number in range(count):
        tokens = np.full(rng.integers(2, 200), 10 + number, np.int32)
        if rng.random() < 0.2:
            tokens[rng.integers(len(tokens), size=rng.integers(1, 4))] = rng.choice(MARKERS)
        prefix = rng.choice(MARKERS, rng.integers(0, 3) * (rng.random() < 0.4)).astype(np.int32)
        yield {'targets': tokens, PREFIX: prefix, PREFIX_LOSS_WEIGHTS: np.zeros(len(prefix), np.float32)}


def test_no_marker_is_ever_noise_and_each_governs_its_own_document():
    """Over random settings: denoisers, lengths, documents joined, tokens before and inside them."""
    rng = np.random.default_rng(18)
    for case in range(60):
        lengths = {'inputs': int(rng.integers(24, 160)), 'targets': int(rng.integers(24, 160))}
        documents, functions = list(random_documents(rng, 20)), random_objective(rng)
        (made,) = run_joined([join_documents, *functions], [documents], [Context(MODES, lengths, task='t', index=case)])
        parts = [[(set(prefix.tolist()), text) for prefix, text in pieces(one, MODES)] for one in documents]
        mode = getattr(functions[0].options.get('denoiser'), 'mode_token', '')
        words = []
        for one in made:
            inputs, targets = one['inputs'], one['targets']
            assert len(inputs) <= lengths['inputs'] and len(targets) <= lengths['targets'], functions
            assert not np.isin(targets, MARKERS).any(), (functions, targets)
            first = int(np.isin(inputs, MARKERS).sum())
            assert np.isin(inputs[:first], MARKERS).all(), 'markers come first'
            words += [word for word in (*inputs, *targets) if 10 <= word < 30]
            before = set(inputs.tolist()) & set(MARKERS)
            before -= {MODES.mode_token_id(mode)} if mode else set()
            here = {int(word) - 10 for word in (*inputs, *targets) if 10 <= word < 30}
            assert len(here) == 1 or not before, 'a window with a marker holds one document'
            assert all(any(before <= prefix for prefix, _ in parts[number]) for number in here), 'its own marker'
        lost = sum(len(text) for one in parts for _, text in one) - len(words)
        assert 0 <= lost <= sum(len(text) == 1 for one in parts for _, text in one), (
            'no token is lost but the only ones'
        )


def test_untagged_documents_are_joined_as_without_controls():
    plain = [{'targets': np.full(9, 10 + i, np.int32)} for i in range(6)]
    empty = {PREFIX: np.zeros(0, np.int32), PREFIX_LOSS_WEIGHTS: np.zeros(0, np.float32)}
    tagged = {'targets': np.full(9, 77, np.int32), PREFIX: np.array([MARKERS[3]]), PREFIX_LOSS_WEIGHTS: np.zeros(1)}
    marked = {'targets': np.array([70, MARKERS[0], 71, 71], np.int32), **empty}
    joined = join_documents.join([*({**one, **empty} for one in plain[:3]), tagged, marked, *plain[3:]], MODES)
    np.testing.assert_array_equal(joined[0]['targets'], join_documents.join(plain, MODES)[0]['targets'])
    assert joined[1:] == [tagged, marked]
    assert join_documents.join([tagged, marked], MODES) == [tagged, marked]


@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_a_causal_model_reads_the_token_in_every_window_and_its_loss_is_a_setting(tmp_path, weight):
    rows = [{'text': 'long ' * 60, 'scores': {'toxicity': 0.1}}, *ROWS[:20]]
    found = examples_of(tmp_path, f'control_loss_{int(weight)}', rows, share=1.0, loss_weight=weight)
    assert [len(one['targets']) for one in found[:3]] == [128, 128, 48], 'three windows, each with its token'
    for one in found:
        assert one['targets'][0] >= 359 and not (one['targets'][1:] >= 359).any()
        assert one[LOSS_WEIGHTS][0] == weight and (one[LOSS_WEIGHTS][1:] == 1).all()
    batch = make_batch('causal_lm', {'targets': 128}, [[one] for one in found], True)
    assert batch['decoder_loss_weights'][0, 0] == weight and batch['decoder_input_tokens'][0, 1] >= 359


def test_bad_input_is_one_line(tmp_path):
    line = r"line 2: no number at 'scores.toxicity' \(found None\); the fields are text. Set Control.field"
    with pytest.raises(UserError, match=line):
        examples_of(tmp_path, 'control_lacks', [ROWS[0], {'text': 'a'}])
    line = r"no token '\[TOX_LOW\]', it has none. Set Control.tokens or DataConfig.mode_tokens"
    with pytest.raises(UserError, match=line):
        examples_of(tmp_path, 'control_vocabulary', vocabulary=ByteVocabulary(100), share=1.0)
    with pytest.raises(UserError, match='Control.thresholds'):
        control(thresholds=(0.7, 0.3))
    with pytest.raises(UserError, match='Control.thresholds'):
        control(thresholds=(0.5,))
    with pytest.raises(UserError, match='Control.share=2'):
        control(share=2)
    for weight in (-1, 'all', True):
        with pytest.raises(UserError, match='Control.loss_weight'):
            control(loss_weight=weight)
    with pytest.raises(UserError, match='no text fits in 2 tokens behind 1 control tokens. Set larger DataConfig.feat'):
        tagged = {'targets': np.full(9, 9), PREFIX: np.array([359]), PREFIX_LOSS_WEIGHTS: np.zeros(1)}
        denoising.causal_lm.apply(tagged, Context(VOCABULARY, {'targets': 2}))
    path = tmp_path / 'a.txt'
    path.write_text('words\n')
    files = (TextFiles('control_txt', str(path), controls=(control(),)),)
    lengths = {'inputs': 9, 'targets': 9}
    settings = DataConfig('control_txt_causal_lm', 8, lengths, 'bytes', format='causal_lm', text_files=files)
    register_all(settings)
    with pytest.raises(UserError, match='has no scores.*Set TextFiles.train'):
        eval_examples(settings, VOCABULARY)
