"""Converted models equal the originals: logits, loss, gradients and greedy tokens, recorded by transformers and T5X."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import t5flan
from t5flan.conversion import convert, names
from t5flan.conversion.gguf import model as gguf
from t5flan.conversion.huggingface_config import table_of
from t5flan.data.vocabulary.byte_level import IdsVocabulary
from t5flan.decoding.config import Decoding
from t5flan.language_model import LanguageModel
from t5flan.models.parameters import named_parameters
from tests.conversion.round_trip import there_and_back

GOLDEN = Path(__file__).parent / 'golden'
FAMILIES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
FIXTURES = ('t5_v1_0', 't5_v1_1', 'umt5', 'llama', 'qwen2', 'qwen3', 'gemma2', 'gemma3', 't5gemma', 'longt5_local')
FIXTURES += ('gguf_qwen2_f16', 'gguf_llama_q4_0', 'gguf_llama_q8_0')
RECORDINGS = ('t5_1_1_tiny', 'scalable_t5_1_1_tiny_scanned')
LOGIT_TOLERANCE, RELATIVE = 2e-4, 1e-4


@pytest.fixture
def source(request) -> Path:
    """A Hugging Face folder with expected.npz next to the weights."""
    name = request.param
    return request.getfixturevalue('shared') / 'fixtures' / 'hf' / name.split()[1] if ' ' in name else GOLDEN / name


every_source = pytest.mark.parametrize(
    'source',
    [
        *FAMILIES,
        *(
            pytest.param(f'fixture {name}', marks=[pytest.mark.slow] if name.startswith('gguf') else [])
            for name in FIXTURES
        ),
    ],
    indirect=True,
)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """Converts a folder and loads the result, once for all tests."""

    @functools.cache
    def load(source: Path, format: str) -> LanguageModel:
        folder = tmp_path_factory.mktemp('converted') / 'model'
        if (source / 'model.gguf').exists():  # without a tokenizer: start and end are those of the recording
            checkpoint = gguf.read(source / 'model.gguf', IdsVocabulary(128, 1, 2))
        else:
            checkpoint = convert.read(source, format)
        convert.write(checkpoint, folder, 't5flan')
        return t5flan.load(folder)

    return load


def recorded(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    expected = dict(np.load(folder / 'expected.npz'))
    given = expected.pop('grad_norms', None)
    return expected, json.loads(str(given) if given is not None else (folder / 'grad_norms.json').read_text())


def model_type(folder: Path) -> str:
    """Hugging Face's name of the family, of a folder or of the recording of a GGUF file (gguf_llama_q4_0)."""
    config = folder / 'config.json'
    return json.loads(config.read_text())['model_type'] if config.exists() else folder.name.split('_')[1]


@pytest.mark.parametrize(
    'source',
    [*FAMILIES, *(pytest.param(f'fixture {name}', marks=pytest.mark.slow) for name in FIXTURES)],
    indirect=True,
)
def test_logits_loss_and_gradients_are_hugging_faces(source, converted):
    expected, norms = recorded(source)
    model = converted(source, 'hf')
    if 'labels' in expected:
        batch = {'encoder_input_tokens': expected['input_ids'], 'decoder_input_tokens': expected['decoder_input_ids']}
        labels_BT = expected['labels']
    else:
        batch = {'decoder_input_tokens': expected['input_ids']}
        labels_BT = np.pad(expected['input_ids'][:, 1:], ((0, 0), (0, 1)), constant_values=-100)

    def loss(parameters, batch):
        logits_BTV = parameters(batch)
        targets_BT1 = jnp.maximum(labels_BT, 0)[..., None]
        log_probs_BT = jnp.take_along_axis(jax.nn.log_softmax(logits_BTV), targets_BT1, -1)[..., 0]
        return -jnp.sum(log_probs_BT * (labels_BT >= 0)) / (labels_BT >= 0).sum(), logits_BTV

    (value, logits_BTV), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        model.model, {name: x.astype(np.int32) for name, x in batch.items()}
    )
    np.testing.assert_allclose(logits_BTV, expected['logits'], atol=LOGIT_TOLERANCE, rtol=0)
    np.testing.assert_allclose(value, expected['loss'], rtol=RELATIVE)

    table = table_of(model_type(source))
    gradients = named_parameters(gradients)
    pieces = list(names.all_pieces(model.config))
    for shape, layer in pieces:
        gradient = np.asarray(gradients[shape.name], np.float64)
        norm = np.linalg.norm((gradient if layer is None else gradient[layer]).ravel())
        np.testing.assert_allclose(norm, norms[names.hf_name(table, shape, layer)], rtol=RELATIVE, atol=1e-6)
    assert len(pieces) == len(norms)


@every_source
def test_logits_and_greedy_tokens_are_hugging_faces(source, converted):
    expected, _ = recorded(source)
    model = converted(source, 'hf')
    if source.parent != GOLDEN:  # their logits are compared above, with the loss
        features = {'encoder_input_tokens': 'input_ids', 'decoder_input_tokens': 'decoder_input_ids'}
        features = features if 'labels' in expected else {'decoder_input_tokens': 'input_ids'}
        logits_BTV = model.logits({feature: expected[name] for feature, name in features.items()})
        np.testing.assert_allclose(logits_BTV, expected['logits'], atol=LOGIT_TOLERANCE, rtol=0)
    if 'labels' in expected:
        prompts, skipped = [[int(token) for token in row if token] for row in expected['input_ids']], 0
        if (expected['greedy'][:, 0] == model.vocabulary.start_id).all():
            skipped = 1  # the start token, which transformers returns
    elif 'attention_mask' in expected:
        prompts = [
            row[mask > 0].tolist() for row, mask in zip(expected['left_padded_input_ids'], expected['attention_mask'])
        ]
        skipped = expected['left_padded_input_ids'].shape[1]
    else:
        prompts, skipped = expected['input_ids'].tolist(), 0
    greedy_BT = expected['greedy'][:, skipped:]
    results = model.generate_ids(prompts, greedy_BT.shape[1], started='labels' not in expected)
    for (result,), row in zip(results, greedy_BT, strict=True):
        written = result.tokens.tolist()
        assert written + [0] * (len(row) - len(written)) == row.tolist()


SEARCHES = {
    'beam4': Decoding(num_beams=4),
    'beam4_lp06_early': Decoding(num_beams=4, length_penalty=0.6, early_stopping=True),
    'beam4_alt_eos': Decoding(num_beams=4),
    'beam4_alt_eos_lp06_early': Decoding(num_beams=4, length_penalty=0.6, early_stopping=True),
    'beam4_alt_eos_lp0_never': Decoding(num_beams=4, length_penalty=0.0, early_stopping='never'),
}


@pytest.mark.parametrize(
    'name', [name if name == 't5_v1_1' else pytest.param(name, marks=pytest.mark.slow) for name in FIXTURES]
)
def test_beams_and_their_scores_are_hugging_faces(name, shared, converted):
    """`alt_eos`: recorded with another end of sequence, which more beams reach."""
    folder = shared / 'fixtures' / 'hf' / name
    expected, _ = recorded(folder)
    model = converted(folder, 'hf')
    prompts, skipped = rows_of(expected)
    for search, decoding in SEARCHES.items():
        if search not in expected:
            continue
        eos = int(expected['alt_eos_id']) if 'alt_eos' in search else 1
        limit = expected['beam4'].shape[-1] - skipped
        width = expected[search].shape[-1] - skipped  # less than the limit where all beams of a recording end before
        tokens_BWT = expected[search].reshape(len(prompts), -1, width + skipped)[:, :, skipped:]
        scores_BW = expected[f'{search}_scores'].reshape(len(prompts), -1)
        results = model.generate_ids(prompts, limit, decoding=decoding, started='labels' not in expected, end_id=eos)
        for beams, tokens_WT, scores_W in zip(results, tokens_BWT, scores_BW, strict=True):
            beams = beams[: len(scores_W)]  # some recordings have the best beam only
            np.testing.assert_allclose([one.score for one in beams], scores_W, atol=1e-4, rtol=0)
            for one, row in zip(beams, tokens_WT.tolist(), strict=True):
                written = one.tokens.tolist()
                assert written + [eos] * (width - len(written)) == row


def rows_of(expected: dict[str, np.ndarray]) -> tuple[list[list[int]], int]:
    """The prompts without padding, and how many tokens of a recorded continuation belong to the prompt."""
    if 'labels' in expected:
        return [[int(token) for token in row if token] for row in expected['input_ids']], 1
    rows = zip(expected['left_padded_input_ids'], expected['attention_mask'], strict=True)
    return [row[mask > 0].tolist() for row, mask in rows], expected['left_padded_input_ids'].shape[1]


def uncached(model: LanguageModel, prompts: list[list[int]], texts: list[list[int]], start: int) -> list[np.ndarray]:
    """Log-probabilities [T, V] before each of the T tokens of a text, in one pass over all of them: without a cache."""
    crosses = model.config.architecture == 'encoder_decoder'
    first = [[start] if crosses else prompt for prompt in prompts]
    read = [[*before, *text[:-1]] for before, text in zip(first, texts, strict=True)]
    padded = lambda rows: np.array([row + [0] * (max(map(len, rows)) - len(row)) for row in rows], np.int32)
    batch = {'decoder_input_tokens': padded(read)} | ({'encoder_input_tokens': padded(prompts)} if crosses else {})
    log_probs_BTV = np.asarray(jax.nn.log_softmax(model.logits(batch)))
    places = [len(before) - 1 for before in first]
    return [row[i : i + len(text)] for row, i, text in zip(log_probs_BTV, places, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize('name', FIXTURES)
def test_uncached_tokens_and_scores_are_hugging_faces(name, shared, converted):
    """Each greedy token is the likeliest of a pass over all before it; the score of a beam is that of such a pass."""
    folder = shared / 'fixtures' / 'hf' / name
    expected, _ = recorded(folder)
    model, eos = converted(folder, 'hf'), 1
    prompts, skipped = rows_of(expected)
    start = int(expected['decoder_input_ids'][0, 0]) if 'labels' in expected else 0
    ended = lambda row: row[: row.index(eos) + 1] if eos in row else row
    greedy = [ended(row[skipped:].tolist()) for row in expected['greedy']]
    for found_TV, text in zip(uncached(model, prompts, greedy, start), greedy, strict=True):
        assert found_TV.argmax(-1).tolist() == text
    best_BT = expected['beam4'].reshape(len(prompts), 4, -1)[:, 0, skipped:]
    beams = [ended(row.tolist()) for row in best_BT]
    scores_B = expected['beam4_scores'].reshape(len(prompts), 4)[:, 0]
    for found_TV, text, score in zip(uncached(model, prompts, beams, start), beams, scores_B, strict=True):
        total = found_TV[np.arange(len(text)), text].sum()
        np.testing.assert_allclose(total / len(text), score, atol=1e-4)


@pytest.mark.parametrize('name', ['t5_v1_1', 'umt5', 't5gemma', 'longt5_local'])
def test_long_inputs_reach_the_far_buckets(name, shared, converted):
    folder = shared / 'fixtures' / 'hf' / name
    expected, _ = recorded(folder)
    shifted_BT = np.pad(expected['long_labels'][:, :-1], ((0, 0), (1, 0)))
    batch = {
        'encoder_input_tokens': expected['long_input_ids'],
        'decoder_input_tokens': expected.get('long_decoder_input_ids', shifted_BT),
    }
    logits_BTV = converted(folder, 'hf').logits(batch)[:, :: int(expected['long_logits_stride'])]
    np.testing.assert_allclose(logits_BTV, expected['long_logits'], atol=LOGIT_TOLERANCE, rtol=0)


@pytest.mark.parametrize('name', RECORDINGS)
def test_logits_and_greedy_tokens_are_t5xs(name, shared, converted):
    expected = np.load(shared / 'fixtures' / 't5x' / f'{name}.npz')
    model = converted(shared / 'fixtures' / 't5x' / name, 't5x')
    logits_BTV = model.logits({name: expected[name] for name in ('encoder_input_tokens', 'decoder_input_tokens')})
    difference_BT = np.abs(logits_BTV - expected['logits']).max(-1) * expected['decoder_loss_weights']
    assert difference_BT.max() < LOGIT_TOLERANCE
    prompts = [[int(token) for token in row if token] for row in expected['encoder_input_tokens']]
    assert [one.tokens.tolist() for (one,) in model.generate_ids(prompts, 16)] == expected['greedy16'].tolist()
    t5x = Decoding(num_beams=4, length_penalty=0.6, beam_scoring='t5x')
    results = model.generate_ids(prompts, 16, decoding=t5x)
    padded = [[np.pad(one.tokens, (0, 16 - len(one.tokens))) for one in beams[::-1]] for beams in results]
    np.testing.assert_array_equal(padded, expected['beam4'])  # the best one last
    scores = [[one.score for one in beams[::-1]] for beams in results]
    np.testing.assert_allclose(scores, expected['beam4_scores'], atol=1e-4, rtol=0)


@pytest.mark.parametrize('family', FAMILIES)
def test_there_and_back_is_the_identity(family, tmp_path):
    """Through each format and back, bit for bit and in each array's dtype."""
    source = convert.read(GOLDEN / family, 'hf')
    formats = convert.FORMATS if source.config.position == 'relative_bias' else ('hf', 't5flan')
    there_and_back(source, tmp_path, formats)


def test_there_and_back_from_t5x(tmp_path, shared):
    for name in RECORDINGS:
        source = convert.read(shared / 'fixtures' / 't5x' / name, 't5x')
        for dtype, format in (('float32', 'hf'), ('bfloat16', 't5flan'), ('float16', 't5x')):
            rounded = source.cast(dtype)
            folder = tmp_path / f'{name}_{format}'
            convert.write(rounded, folder, format)
            convert.write(convert.read(folder, format), Path(f'{folder}_back'), 't5x')
            convert.compare(rounded, convert.read(f'{folder}_back', 't5x'), format)
