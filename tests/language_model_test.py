"""A checkpoint folder is loaded as an object that generates, scores and returns logits; mismatches are reported."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import t5flan
from t5flan.data.batches.converter import make_batch
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.language_model import LanguageModel, load
from t5flan.mesh import MeshConfig
from tests.saved_model import LENGTHS, byte_model, save_folder

TEXTS = ['ab', 'a longer one', '']
FORMATS = {'encoder_decoder': 't5_1_1', 'prefix_lm': 'gemma', 'causal_lm': 'relative'}


@pytest.fixture(scope='module')
def made():
    return {
        format: LanguageModel(byte_model(family), ByteVocabulary(), format, LENGTHS)
        for format, family in FORMATS.items()
    }


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp('run') / 'mine', byte_model())


@pytest.mark.parametrize('format', FORMATS)
def test_score_is_the_sum_over_the_targets(made, format):
    model, vocabulary = made[format], ByteVocabulary()
    targets = ['xyz', 'q', 'é']
    scores = model.score(TEXTS, targets)
    examples = [
        {
            name: np.array(vocabulary.encode(text) + [1], np.int32)
            for name, text in (('inputs', one), ('targets', other))
        }
        for one, other in zip(TEXTS, targets)
    ]
    batch = make_batch(format, LENGTHS, [[example] for example in examples], packed=True)
    log_probs_BTV = np.asarray(jax.nn.log_softmax(model.logits(batch)))
    picked_BT = np.take_along_axis(log_probs_BTV, batch['decoder_target_tokens'][..., None], -1)[..., 0]
    np.testing.assert_allclose(scores, (picked_BT * batch['decoder_loss_weights']).sum(-1), rtol=1e-4)
    assert [model.score([a], [b])[0] for a, b in zip(TEXTS, targets)] == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize('format', FORMATS)
def test_log_probs_of_a_generation_sum_to_its_score(made, format):
    model = made[format]
    inputs = [model.input_ids(text) for text in TEXTS]
    generations = [samples[0] for samples in model.generate_ids(inputs, 5)]
    scores = model.score_ids(inputs, [one.tokens.tolist() for one in generations])
    np.testing.assert_allclose([one.log_probs.sum() for one in generations], scores, rtol=1e-4)


def test_generation_by_text(made):
    model = made['encoder_decoder']
    written = model.generate(TEXTS, temperature=1.0, seed=3)
    assert len(written) == 3 and all(isinstance(text, str) for text in written)
    assert model.generate(TEXTS[::-1], temperature=1.0, seed=3, rows=[2, 1, 0]) == written[::-1]
    decoding = Decoding(temperature=1.0, seed=5)
    assert model.generate(TEXTS, decoding=decoding, seed=3) == written != model.generate(TEXTS, decoding=decoding)
    samples = model.samples(TEXTS, 2, temperature=1.0, seed=3)
    assert [first for first, _ in samples] == written and samples[0][0] != samples[0][1]
    longest = max(len(one[0].tokens) for one in model.generate_ids([model.input_ids('a')], seed=1))
    assert longest <= LENGTHS['targets'] == model.max_new_tokens


@pytest.mark.slow
def test_beams_by_text(made):
    model = made['encoder_decoder']
    beams = model.beams(TEXTS, 3, 5, length_penalty=0.0)
    assert all(one.score >= other.score for group in beams for one, other in zip(group, group[1:], strict=False))
    best = model.generate(TEXTS, 5, num_beams=3, length_penalty=0.0)
    assert best == [group[0].text for group in beams] and all(len(group) == 3 for group in beams)
    inputs = [model.input_ids(text) for text in TEXTS]
    (greedy,) = zip(*model.generate_ids(inputs, 5), strict=True)
    assert all(group[0].score >= one.score - 1e-5 for group, one in zip(beams, greedy, strict=True))


def test_continuations_are_those_of_texts_with_their_scores(made):
    model, texts = made['causal_lm'], ['ab', 'xyz']
    inputs = [model.input_ids(text) for text in texts]
    decoding = Decoding(max_new_tokens=3, num_samples=2, temperature=1.0, seed=3)
    found = model.continuations(inputs, decoding=decoding, rows=[5, 9])
    assert [[one.text for one in group] for group in found] == model.samples(texts, 2, decoding=decoding, rows=[5, 9])
    generations = model.generate_ids(inputs, decoding=decoding, rows=[5, 9])
    assert [[one.score for one in group] for group in found] == [[one.score for one in group] for group in generations]


def test_generation_ends_before_stop_strings(made):
    model = made['causal_lm']
    free = model.generate(TEXTS, 12)
    stop = [text[2:4] for text in free if len(text) > 4]
    assert stop
    cuts = [min([len(text), *(at for one in stop if (at := text.find(one)) >= 0)]) for text in free]
    assert model.generate(TEXTS, 12, stop=tuple(stop)) == [text[:cut] for text, cut in zip(free, cuts, strict=True)]


def test_inputs_end_as_in_training(made):
    assert made['encoder_decoder'].input_ids('a<extra_id_0>') == [100, 258, 1]
    plain = LanguageModel(byte_model('relative'), ByteVocabulary(), 'causal_lm', {'targets': 8})
    assert plain.input_ids('a') == [100]


def test_a_model_whose_tokenizer_adds_no_bos_reads_the_prompt_alone(made):
    model = made['causal_lm']
    plain = dataclasses.replace(model, vocabulary=ByteVocabulary().with_conventions(Conventions(add_bos=False)))
    prompt = plain.input_ids('ab')
    [[ours]], [[started]] = plain.generate_ids([prompt], 4), model.generate_ids([prompt], 4, started=True)
    assert ours.tokens.tolist() == started.tokens.tolist()
    target = plain.vocabulary.encode('xy')
    logits_TV = plain.logits({'decoder_input_tokens': np.array([[*prompt, *target[:-1]]], np.int32)})[0]
    log_probs_TV = np.asarray(jax.nn.log_softmax(logits_TV))
    expected = sum(log_probs_TV[len(prompt) - 1 + i, id] for i, id in enumerate(target))
    assert plain.score_ids([prompt], [target])[0] == pytest.approx(expected, rel=1e-4)
    assert plain.score_ids([[]], [target])[0] == pytest.approx(model.score_ids([[]], [target])[0], rel=1e-4)
    ended = dataclasses.replace(
        LanguageModel(byte_model('relative'), ByteVocabulary(), 'causal_lm', {'targets': 8}),
        vocabulary=ByteVocabulary().with_conventions(Conventions(add_eos=True)),
    )
    assert ended.input_ids('a') == [100, 1]


@pytest.mark.parametrize('format', FORMATS)
def test_chat_continues_what_the_template_writes(made, format):
    pytest.importorskip('jinja2')
    template = "{% for m in messages %}{{ m.role[0] ~ m.content }}{% endfor %}{{ 'a' if add_generation_prompt }}"
    conventions = Conventions(chat_template=template)
    model = dataclasses.replace(made[format], vocabulary=ByteVocabulary().with_conventions(conventions))
    turns = [{'role': 'user', 'content': text} for text in ('q', 'xy')]
    ids = [model.vocabulary.encode('uqa'), model.vocabulary.encode('uqauxya')]
    started = format != 'encoder_decoder'
    expected = [one.tokens for (one,) in model.generate_ids(ids, 5, started=started)]
    conversations = [turns[:1], [turns[0], {'role': 'assistant', 'content': ''}, turns[1]]]
    assert model.chat(conversations, 5) == [model.vocabulary.decode(tokens) for tokens in expected]
    with pytest.raises(UserError, match='has no chat template'):
        made[format].chat(conversations)


def test_load_restores_the_saved_model(folder, made):
    model = t5flan.load(folder)
    assert (model.step, model.format, dict(model.feature_lengths)) == (8, 'encoder_decoder', LENGTHS)
    assert load(folder, step=4).step == 4 and load(folder / 'checkpoints' / '4').step == 4
    assert model.generate(TEXTS) == made['encoder_decoder'].generate(TEXTS)
    meshed = load(folder, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    assert meshed.score(['a', 'bc'], ['b', 'c']) == pytest.approx(model.score(['a', 'bc'], ['b', 'c']), rel=1e-5)


@pytest.mark.parametrize(
    'spoil, words',
    [
        (lambda f: shutil.rmtree(f), 'does not exist'),
        (lambda f: (f / 't5flan.json').unlink(), 'no t5flan.json'),
        (lambda f: (f / 't5flan.json').write_text('{'), 'not the description'),
        (lambda f: shutil.rmtree(f / 'checkpoints'), 'no complete checkpoint'),
        (lambda f: ByteVocabulary(10).save(f / 'vocabulary'), 'is not the vocabulary'),
        (lambda f: shutil.rmtree(f / 'vocabulary'), 'vocabulary'),
    ],
)
def test_a_broken_folder_is_reported(folder, tmp_path, spoil, words):
    copy = shutil.copytree(folder, tmp_path / 'copy')
    spoil(copy)
    with pytest.raises(UserError, match=words) as error:
        load(copy)
    assert str(copy) in str(error.value) and '\n' not in str(error.value)


def test_a_missing_step_lists_the_existing_ones(folder):
    with pytest.raises(UserError, match=r'no step 5; .*4.*8'):
        load(folder, step=5)


def test_mismatches_and_wrong_arguments_are_reported(made):
    with pytest.raises(UserError, match='259 ids, ModelConfig.vocab_size=200'):
        LanguageModel(byte_model(vocab_size=200), ByteVocabulary(), 'encoder_decoder')
    with pytest.raises(UserError, match='ModelConfig.architecture=.decoder_only.: expected prefix_lm or causal_lm'):
        LanguageModel(byte_model('palm'), ByteVocabulary(), 'encoder_decoder')
    model = made['encoder_decoder']
    with pytest.raises(UserError, match='a list'):
        model.generate('a bare string')
    with pytest.raises(UserError, match='1 inputs and 2 targets'):
        model.score(['a'], ['b', 'c'])
    with pytest.raises(UserError, match="'encoder_input_tokens'"):
        model.logits({'decoder_input_tokens': np.zeros((1, 2), np.int32)})
    with pytest.raises(UserError, match='temperature=-1.0'):
        model.generate(['a'], temperature=-1.0)
    with pytest.raises(UserError, match='max_new_tokens=0'):
        model.generate(['a'], max_new_tokens=0)
    with pytest.raises(UserError, match='num_samples=2, expected 1'):
        model.generate(['a'], num_samples=2)
    for method in (model.generate, model.generate_ids, lambda texts, **settings: model.samples(texts, 2, **settings)):
        with pytest.raises(UserError, match='^temprature=0.7 is not .*; did you mean temperature'):
            method([], temprature=0.7)


def test_loading_needs_no_tensorflow(folder):
    code = (
        'import sys, t5flan; t5flan.load(sys.argv[1]); '
        'print([name for name in ("tensorflow", "seqio", "gin", "matplotlib") if name in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_perplexity_is_that_of_all_tokens_whatever_the_window():
    model = LanguageModel(byte_model('relative'), ByteVocabulary(), 'causal_lm', {'targets': 8})
    texts = ['The cat', 'x' * 40]
    expected = [
        np.exp(-score / len(text))
        for score, text in zip(model.score_ids([[], []], [model.vocabulary.encode(t) for t in texts]), texts)
    ]
    assert model.perplexity(texts) == pytest.approx(expected, rel=1e-5)
    assert model.perplexity(texts[:1], window=3)[0] != pytest.approx(expected[0], rel=1e-3), 'less context'
    assert model.perplexity(['ab'], window=1)[0] > 1
    with pytest.raises(UserError, match='text 1 is empty'):
        model.perplexity(['a', ''])
    with pytest.raises(UserError, match='needs a decoder-only model'):
        LanguageModel(byte_model(), ByteVocabulary(), 'encoder_decoder', LENGTHS).perplexity(['a'])
