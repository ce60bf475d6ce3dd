"""Prompt tuning: vectors that are embeddings of tokens act as those tokens, with a cache and without."""

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.llama_adapter import LlamaAdapter
from t5flan.adapters.methods.p_tuning import PTuning
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.language_model import LanguageModel
from tests.adapters.methods.virtual_tokens import adapted, assert_cached_equals_whole, logits_of, whole_rows
from tests.models.small_models import small_model

TOKENS = np.array([7, 40, 9])


@pytest.mark.parametrize(
    ('family', 'prefix_lm'),
    [('relative', True), *(pytest.param(*case, marks=pytest.mark.slow) for case in [('gemma', False), ('palm', True)])],
)
def test_decoding_reads_the_prompt_as_a_forward_pass_does(family, prefix_lm):
    assert_cached_equals_whole(adapted(family, PromptTuning(tokens=3)), prefix_lm)


@pytest.mark.parametrize('prefix_lm', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_embeddings_of_tokens_act_as_these_tokens(prefix_lm):
    """The rows [start, a, b] after the vectors of three tokens are the rows [three tokens, start, a, b]."""
    model = small_model('palm')
    prompt_PD = model.token_embedder.embedding[...][TOKENS]
    prompted = adapters.with_arrays(
        adapters.apply(model, PromptTuning(tokens=3), jax.random.key(1)), {'prompt': prompt_PD}
    )
    batch = whole_rows(prefix_lm)
    longer = {'decoder_input_tokens': np.concatenate([np.tile(TOKENS, (4, 1)), batch['decoder_input_tokens']], axis=1)}
    if prefix_lm:
        longer['decoder_causal_attention'] = np.pad(
            batch['decoder_causal_attention'], ((0, 0), (3, 0)), constant_values=1
        )
    expected = logits_of(model, longer)[:, 3:]
    np.testing.assert_allclose(logits_of(prompted, batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'format'),
    [
        pytest.param(PrefixTuning(tokens=3), 'causal_lm', marks=pytest.mark.slow),
        pytest.param(PromptTuning(tokens=3), 'prefix_lm', marks=pytest.mark.slow),
        pytest.param(PTuning(tokens=3), 'causal_lm', marks=pytest.mark.slow),
        pytest.param(LlamaAdapter(tokens=3), 'prefix_lm', marks=pytest.mark.slow),
    ],
    ids=['prefix', 'prompt', 'p-tuning', 'llama-adapter'],
)
def test_generation_and_scores_are_those_of_whole_rows(settings, format):
    model = LanguageModel(
        adapted('palm', settings, vocab_size=260, num_decoder_layers=1), ByteVocabulary(), format, prompt_format='plain'
    )
    inputs, targets = [[5, 9, 2], [7, 8, *range(30, 70)], [5, 9, 2]], [[40, 41], [42], [43, 44, 45, 46]]
    found = model.likelihoods(inputs, targets, batch_size=2)
    written = [one.tokens.tolist() for (one,) in model.generate_ids(inputs, 4)]
    assert [one.is_greedy for one in model.likelihoods(inputs, written)] == [True] * 3
    assert written == [model.generate_ids([ids], 4)[0][0].tokens.tolist() for ids in inputs]
    rows = [[0, *ids, *target[:-1]] for ids, target in zip(inputs, targets)]
    batch = {'decoder_input_tokens': np.array([row + [0] * (46 - len(row)) for row in rows], np.int32)}
    if format == 'prefix_lm':
        prefix = [[1] * (1 + len(ids)) + [0] * (45 - len(ids)) for ids in inputs]
        batch['decoder_causal_attention'] = np.array(prefix, np.int32)
    log_probs_BTV = np.asarray(jax.nn.log_softmax(model.logits(batch)))
    for one, ids, target, log_probs_TV in zip(found, inputs, targets, log_probs_BTV):
        total = sum(log_probs_TV[len(ids) + i, token] for i, token in enumerate(target))
        np.testing.assert_allclose(one.log_prob, total, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_beams_samples_and_smaller_batches_keep_the_prompt(settings):
    """A row's result depends neither on its neighbours nor on when they end; 20 rows are enough for compaction."""
    model = LanguageModel(
        adapted('palm', settings, vocab_size=260, num_decoder_layers=1), ByteVocabulary(), 'causal_lm'
    )
    inputs = [[5 + i, 9, 2][: 1 + i % 3] for i in range(20)]
    together = model.generate_ids(inputs, 128, num_samples=2, seed=3, temperature=1.0)
    for i in (0, 7):
        alone = model.generate_ids([inputs[i]], 128, num_samples=2, seed=3, temperature=1.0, rows=[i])
        for one, other in zip(together[i], alone[0]):
            np.testing.assert_array_equal(one.tokens, other.tokens)
    beams = model.generate_ids(inputs[:3], 6, num_beams=3)
    for ids, group in zip(inputs, beams):
        scores = model.likelihoods([ids] * len(group), [one.tokens.tolist() for one in group])
        np.testing.assert_allclose([sum(one.log_probs) for one in group], [one.log_prob for one in scores], rtol=1e-4)


def test_wrong_settings_are_one_clear_line():
    with pytest.raises(UserError, match='PromptTuning.tokens=0, expected an integer of 1 or more'):
        PromptTuning(tokens=0)
    with pytest.raises(UserError, match='PromptTuning.rows=2, expected an integer of 3'):
        PromptTuning(tokens=3, rows=2)


@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_packed_rows_are_refused_or_cannot_go_unnoticed(settings):
    """A decoder's rows have segment ids in any case; those of a single example change nothing."""
    model, batch = adapted('palm', settings, num_decoder_layers=1), whole_rows(prefix_lm=False)
    tokens_BT = batch['decoder_input_tokens']
    one = np.where(np.arange(9)[None] < 6, 1, 0) * np.ones_like(tokens_BT)
    batch |= {'decoder_positions': np.arange(9)[None] * one, 'decoder_segment_ids': one}
    expected = logits_of(model, {'decoder_input_tokens': tokens_BT})
    np.testing.assert_allclose(logits_of(model, batch)[:, :6], expected[:, :6], atol=1e-5)
    batch['decoder_segment_ids'] = one + (np.arange(4) == 2)[:, None] * (np.arange(9) == 5)[None]
    assert np.isnan(logits_of(model, batch)).all(axis=(1, 2)).tolist() == [False, False, True, False]

    model = adapters.apply(small_model('t5_1_1'), settings, jax.random.key(1))
    names = [f'{stack}_{kind}' for stack in ('encoder', 'decoder') for kind in ('input_tokens', 'segment_ids')]
    with pytest.raises(UserError, match='got packed rows, expected one example in a row. Set DataConfig.pack=False'):
        model.hidden({name: np.ones((1, 4), np.int32) for name in names})
