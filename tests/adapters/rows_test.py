"""Adapters chosen for each row of a batch: a row is what its adapter alone makes of it, and without one the base's."""

import functools

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.adapters.methods.bottleneck import Bottleneck
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.dy_lora import DyLora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.llama_adapter import LlamaAdapter
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.p_tuning import PTuning
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.adapters.rows import choose, stack
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.decoding import compaction
from t5flan.errors import UserError
from t5flan.language_model import LanguageModel
from tests.adapters.properties import moved
from tests.saved_model import byte_model

SETTINGS = {
    'de': Lora(rank=4, targets=['.*attention/(query|value)/kernel', '.*mlp/.*/kernel'], rank_pattern={'.*/wo/.*': 2}),
    'fr': Lora(rank=3, rslora=True, bias=True),
    'it': Dora(rank=2, targets=['.*attention/out/kernel']),
    'es': Ia3(),
}
OTHERS = {  # what is not a part of projections, one of them beside a LoRA
    'de': PromptTuning(tokens=2),
    'fr': Bottleneck(size=3),
    'it': PrefixTuning(tokens=3),
    'es': LlamaAdapter(tokens=2),
    'nl': PTuning(tokens=5, encoder='lstm', hidden_size=4),
    'pl': Bottleneck(size=2, kind='parallel', sublayers=('mlp',), activation='silu', scale=2.0),
    'cs': PrefixTuning(tokens=1),
    'pt': Lora(rank=2),
}
KINDS = {'projections': SETTINGS, 'others': OTHERS}
FAMILIES = {'encoder_decoder': 't5_1_1', 'causal_lm': 'relative'}
CHOICE = ['fr', None, 'de', 'it', 'es', 'de']
TEXTS = ['ab', 'a longer one', '', 'xyz', 'a', 'the same as before']
formats = pytest.mark.parametrize('format', FAMILIES)
kinds = pytest.mark.parametrize('kind', KINDS)


@functools.cache
def models(format: str, kind: str = 'projections', family: str | None = None):
    """(the base, the base with all adapters, name -> the model with that adapter alone), as LanguageModels."""
    base = byte_model(family or FAMILIES[format])
    settings = dict(KINDS[kind])
    if kind == 'projections' and not base.config.tie_embeddings:
        settings['pt'] = Lora(rank=2, targets=['decoder/logits_dense/kernel'])

    def adapted(base):
        return {name: moved(adapters.apply(base, one, jax.random.key(0))) for name, one in settings.items()}

    alone = jax.jit(adapted)(base)
    arrays = {name: adapters.adapter_arrays(model) for name, model in alone.items()}
    stacked = jax.jit(lambda base: stack(base, {name: (settings[name], arrays[name]) for name in settings}))(base)
    make = lambda model, names=(): LanguageModel(model, ByteVocabulary(), format, {'targets': 12}, adapters=names)
    alone = {name: make(model) for name, model in alone.items()}
    return make(base), make(stacked, tuple(settings)), alone | {None: make(base)}


def choice_of(format: str, kind: str = 'projections') -> list[str | None]:
    """A choice that includes each adapter."""
    return [*CHOICE[:-1], *(name for name in models(format, kind)[1].adapters if name not in CHOICE)]


@pytest.mark.parametrize(
    ('format', 'kind', 'family'),
    [
        ('causal_lm', 'projections', None),
        pytest.param('causal_lm', 'others', None, marks=pytest.mark.slow),
        pytest.param('encoder_decoder', 'projections', None, marks=pytest.mark.slow),
        pytest.param('encoder_decoder', 'others', None, marks=pytest.mark.slow),
        *(
            pytest.param('causal_lm', 'others', family, marks=pytest.mark.slow)
            for family in ('modern', 'gemma', 'palm')
        ),
        *(pytest.param('encoder_decoder', 'others', one, marks=pytest.mark.slow) for one in ('windowed', 'rotary')),
    ],
)
def test_a_row_has_the_logits_of_its_adapter_alone(format, kind, family):
    base, together, alone = models(format, kind, family)
    choice, rng = choice_of(format, kind), np.random.default_rng(0)
    names = ['encoder_input_tokens'] * (format == 'encoder_decoder') + ['decoder_input_tokens']
    batch = {name: rng.integers(3, 200, (len(choice), 9)).astype(np.int32) for name in names}
    found = together.logits(batch, adapter=choice)
    for row, name in enumerate(choice):
        expected = alone[name].logits(batch)[row]
        np.testing.assert_allclose(found[row], expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
        assert name is None or np.abs(expected - base.logits(batch)[row]).max() > 0.01
    none, of_base = choice.index(None), base.logits(batch)
    # A row that reads no prompt has padding in its place, and products of another width.
    same = dict(rtol=0, atol=0 if kind == 'projections' else 1e-5 * np.abs(of_base).max())
    np.testing.assert_allclose(found[none], of_base[none], **same)
    np.testing.assert_allclose(together.logits(batch), of_base, **same)


@pytest.mark.parametrize(
    ('format', 'kind', 'compared'),
    [
        ('causal_lm', 'projections', ['de']),
        ('causal_lm', 'others', ['de']),
        pytest.param('causal_lm', 'projections', None, marks=pytest.mark.slow),
        pytest.param('causal_lm', 'others', None, marks=pytest.mark.slow),
        pytest.param('encoder_decoder', 'projections', None, marks=pytest.mark.slow),
        pytest.param('encoder_decoder', 'others', None, marks=pytest.mark.slow),
    ],
)
def test_greedy_tokens_and_scores_are_those_of_the_adapter_alone(format, kind, compared):
    _, together, alone = models(format, kind)
    choice = choice_of(format, kind)
    texts = (TEXTS * 2)[: len(choice)]
    generated = together.generate(texts, 6, adapter=choice, batch_size=4)
    scores = together.score(texts[:1] * len(texts), texts, adapter=choice, batch_size=4)
    for row, name in enumerate(choice):
        if compared is None or name in compared:
            assert alone[name].generate(texts, 6, batch_size=4)[row] == generated[row]
            assert alone[name].score(texts[:1] * len(texts), texts, 4)[row] == pytest.approx(scores[row], rel=1e-5)


@pytest.mark.slow
@formats
@pytest.mark.parametrize('decoding', [dict(num_beams=3), dict(num_samples=2, temperature=1.0), dict(stop=('a', 'e'))])
@kinds
def test_beams_samples_and_stop_strings(format, decoding, kind):
    _, together, alone = models(format, kind)
    ids = [together.input_ids(text) for text in TEXTS]
    found = together.generate_ids(ids, 8, adapter=CHOICE, batch_size=4, **decoding)
    for row, name in enumerate(CHOICE):
        for one, other in zip(found[row], alone[name].generate_ids(ids, 8, batch_size=4, **decoding)[row]):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.score == pytest.approx(other.score, abs=1e-4)


@pytest.mark.slow
@formats
@kinds
def test_a_batch_that_shrinks_keeps_the_adapter_of_each_row(format, kind, monkeypatch):
    monkeypatch.setattr(compaction, 'CHECK_EVERY', 4)
    monkeypatch.setattr(compaction, 'LEAST_PROMPTS', 1)
    monkeypatch.setattr(compaction, 'LEAST_TOKENS', 4)
    shrunk = []
    shrink = compaction.sampled.keep
    monkeypatch.setattr(compaction.sampled, 'keep', lambda *args: shrunk.append(1) or shrink(*args))
    _, together, alone = models(format, kind)
    choice, texts = [*CHOICE, *['de'] * 6], TEXTS * 2  # rows of one adapter end with one token
    free = together.generate_ids([together.input_ids(text) for text in texts], 24, adapter=choice)
    rows = [one.tokens.tolist() for (one,) in free]
    # Ends many rows early, and leaves some.
    end = max(
        range(260), key=lambda token: sum(token in row[:8] for row in rows) * any(token not in row[:20] for row in rows)
    )
    ids = [together.input_ids(text) for text in texts]
    found = together.generate_ids(ids, 24, adapter=choice, end_id=end)
    assert shrunk
    for row, name in enumerate(choice):
        expected = alone[name].generate_ids([ids[row]], 24, end_id=end, rows=[row])[0][0]
        assert found[row][0].tokens.tolist() == expected.tokens.tolist()


@pytest.mark.parametrize(
    ('format', 'name'),
    [('causal_lm', 'de'), *(pytest.param('encoder_decoder', name, marks=pytest.mark.slow) for name in ('it', 'es'))],
)
def test_a_model_with_an_adapter_beside_its_kernels_decodes_with_it(format, name):
    """The unrolled step of a CPU merges products of kernels: adapters stay beside them."""
    own = models(format)[2][name]
    merged = LanguageModel(jax.jit(adapters.merge)(own.model), ByteVocabulary(), format, {'targets': 12})
    (one,), (other,) = (model.generate_ids([[5, 6, 7]], 4)[0] for model in (own, merged))
    assert one.tokens.tolist() == other.tokens.tolist()
    np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-4)


@pytest.mark.parametrize(
    ('adapter', 'words'),
    [
        ('ed', "row 0 has adapter='ed'; the model has de, fr, it, es"),
        ([None, 'frr'], "row 1 has adapter='frr'; .*; did you mean fr?"),
        (['de'], 'got 1 adapters for 2 rows, expected a name or None for each'),
    ],
)
def test_a_wrong_choice_is_one_clear_line(adapter, words):
    with pytest.raises(UserError, match=words) as error:
        models('causal_lm')[1].generate(['a', 'b'], adapter=adapter)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match=r"row 0 has adapter='de'; the model was loaded without adapters"):
        models('causal_lm')[0].generate(['a'], adapter='de')


def test_a_method_without_a_form_for_rows_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(PromptTuning, 'by_row', staticmethod(Adapter.by_row))
    base = models('encoder_decoder')[0].model
    settings = PromptTuning(tokens=2)
    arrays = jax.eval_shape(lambda: adapters.adapter_arrays(adapters.apply(base, settings, jax.random.key(0))))
    with pytest.raises(UserError, match="the adapter 'a' has the method PromptTuning, which cannot be chosen by row"):
        stack(base, {'a': (settings, arrays)})


@pytest.mark.slow
@pytest.mark.parametrize('settings', [AdaLora(init_rank=3, target_rank=2), DyLora(rank=3)], ids=['adalora', 'dylora'])
def test_other_low_rank_methods(settings):
    base = models('causal_lm')[0].model
    alone = moved(adapters.apply(base, settings, jax.random.key(0)))
    together = stack(
        base,
        {
            'de': (SETTINGS['es'], adapters.adapter_arrays(models('causal_lm')[2]['es'].model)),
            'x': (settings, adapters.adapter_arrays(alone)),
        },
    )
    batch = {'decoder_input_tokens': np.arange(3, 21, dtype=np.int32).reshape(2, 9)}
    found = choose(together, np.array([0, 2], np.int32))(batch)
    np.testing.assert_array_equal(found[0], base(batch)[0])
    np.testing.assert_allclose(found[1], alone(batch)[1], atol=2e-5)


def test_choosing_changes_only_the_choice():
    model = models('causal_lm')[1].model
    chosen = choose(model, np.array([1, 0, 2], np.int32))
    before, after = jax.tree.leaves(model), jax.tree.leaves(chosen)
    changed = [b.shape for a, b in zip(before, after) if a is not b]
    assert changed and all(shape[-1] == 3 for shape in changed)
