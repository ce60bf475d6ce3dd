"""tasks/ul2.py: mixtures of denoisers for every corpus, the same on any number of hosts and after a restart."""

import numpy as np
import pytest
import seqio

from t5flan import configurables
from t5flan.data.batches.pipeline import TrainPipeline, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import Denoiser, TextFiles
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.reporting.mixture_report import describe_mixture
from t5flan.tasks import register_all, ul2
from tests.data.preprocessing.spans import restore
from tests.tasks.tfds_loader import Loader
from tests.vocabulary import vocabulary_chosen

MODES = ('[NLU]', '[NLG]', '[S2S]')
VOCABULARY = ByteVocabulary(extra_ids=100, mode_tokens=MODES)
WORDS = [f'Document {i} has {i % 50} words: ' + ' '.join(f'w{i}_{j}' for j in range(i % 50)) + '.' for i in range(150)]


def config(mixture, **options):
    defaults = {'batch_size': 8, 'feature_lengths': {'inputs': 128, 'targets': 96}, 'vocabulary': 'bytes'}
    return DataConfig(mixture, **defaults | {'mode_tokens': MODES, 'prefetch': 0} | options)


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """A corpus 'ul2_words' of small documents."""
    path = tmp_path_factory.mktemp('text') / 'words.txt'
    path.write_text('\n'.join(WORDS) + '\n')
    files = TextFiles('ul2_words', str(path), validation=str(path), unit='line')
    register_all(config('ul2_words_ul2', text_files=(files,)))
    yield files
    register_all(config('x'))


def test_every_corpus_has_the_seven_denoisers_in_equal_parts():
    register_all()
    for corpus in ('stdlib_docs', 'c4', 'mc4_fr', 'mc4_zh_Latn'):
        rates = {task.name: rate for task, rate in tasks_and_rates(find_mixture(f'{corpus}_ul2'))}
        assert set(rates) == {
            f'{corpus}_ul2_{name}' for name in ('r_3_15', 'r_8_15', 'x_3_50', 'x_8_50', 'x_64_15', 'x_64_50', 's')
        }
        assert all(rate == pytest.approx(1 / 7) for rate in rates.values())


def test_the_denoisers_are_those_of_the_papers():
    table = ul2.denoisers()
    assert [(one.kind, one.mean_span, one.noise_density, one.mode_token) for one in table['ul2']] == [
        ('R', 3, 0.15, '[NLU]'),
        ('R', 8, 0.15, '[NLU]'),
        ('X', 3, 0.5, '[NLG]'),
        ('X', 8, 0.5, '[NLG]'),
        ('X', 64, 0.15, '[NLG]'),
        ('X', 64, 0.5, '[NLG]'),
        ('S', None, 0.25, '[S2S]'),
    ]
    shares = {kind: sum(one.rate for one in table['u_palm'] if one.kind == kind) for kind in 'SRX'}
    assert shares == {'S': 0.5, 'R': 0.25, 'X': 0.25}


@pytest.mark.parametrize('format', ['encoder_decoder', 'prefix_lm', 'causal_lm'])
@pytest.mark.parametrize('concatenate', [1, 8])
def test_batches_are_the_same_on_any_number_of_hosts_and_after_a_restart(corpus, format, concatenate):
    settings = config('ul2_words_ul2', format=format, concatenate=concatenate, streams=4)
    whole = TrainPipeline(settings, VOCABULARY)
    batches = [next(whole) for _ in range(12)]
    for hosts in (2, 4):
        parts = [TrainPipeline(settings, VOCABULARY, host, hosts) for host in range(hosts)]
        for batch, _ in batches[:6]:
            rows = [next(part)[0] for part in parts]
            for name in batch:
                np.testing.assert_array_equal(np.concatenate([one[name] for one in rows]), batch[name])
    again = TrainPipeline(settings, VOCABULARY)
    again.start(batches[6][1])
    for batch, position in batches[7:]:
        restarted, at = next(again)
        assert at == position and all((restarted[name] == batch[name]).all() for name in batch)
    assert whole.report()['packing_efficiency'] > 0.6
    modes = {VOCABULARY.mode_token_id(token) for token in MODES}
    feature = 'encoder_input_tokens' if format == 'encoder_decoder' else 'decoder_target_tokens'
    assert modes <= set(np.unique(np.concatenate([batch[feature] for batch, _ in batches])).tolist())


@pytest.mark.parametrize('concatenate', [1, 7])
@pytest.mark.parametrize('name', ['r_3_15', 's'])
def test_no_text_is_lost(corpus, name, concatenate):
    examples = eval_examples(config(f'ul2_words_ul2_{name}', concatenate=concatenate), VOCABULARY)
    assert examples.counts.trimmed == 0
    if name == 's':
        tokens = [np.concatenate([one['inputs'][1:-1], one['targets'][:-1]]) for one in examples]
    else:
        tokens = [restore(one['inputs'][1:-1], one['targets'][:-1], VOCABULARY) for one in examples]
    assert VOCABULARY.decode(np.concatenate(tokens)) == ''.join(WORDS)
    full = np.mean([len(one['inputs']) == 128 for one in examples])
    assert name == 's' or (full > 0.9) == (concatenate > 1)


def test_the_training_text_shows_every_record_in_an_epoch(corpus):
    """Joined groups are shuffled as a whole: one epoch of a stream has each document once."""
    settings = config(
        'ul2_words_ul2_s', concatenate=7, batch_size=2, streams=1, feature_lengths={'inputs': 512, 'targets': 512}
    )
    pipeline, text = TrainPipeline(settings, VOCABULARY), ''
    while len(text) < 2 * sum(map(len, WORDS)):
        batch = next(pipeline)[0]
        text += VOCABULARY.decode(batch['encoder_input_tokens'][batch['encoder_input_tokens'] > 1])
    found = [text.count(f'Document {i} has') for i in range(150)]
    assert np.mean([count > 0 for count in found]) > 0.8, 'those cut off between input and target are not counted'


def test_sequential_sources_are_joined_too(monkeypatch):
    records = {'text': WORDS}

    register_all()
    task = seqio.get_mixture_or_task('c4_ul2_r_3_15')
    monkeypatch.setattr(task.source, '_tfds_dataset', Loader(records))
    one = eval_examples(config(task.name, concatenate=16), VOCABULARY)
    tokens = [restore(example['inputs'][1:-1], example['targets'][:-1], VOCABULARY) for example in one]
    assert VOCABULARY.decode(np.concatenate(tokens)) == ''.join(WORDS)
    settings = config(task.name, concatenate=16, streams=2)
    pipeline = TrainPipeline(settings, VOCABULARY)
    batches = [next(pipeline) for _ in range(6)]
    again = TrainPipeline(settings, VOCABULARY)
    again.start(batches[3][1])
    np.testing.assert_array_equal(next(again)[0]['encoder_input_tokens'], batches[4][0]['encoder_input_tokens'])


def test_seqio_itself_reads_a_denoiser(corpus):
    with vocabulary_chosen(VOCABULARY):
        task = seqio.get_mixture_or_task('ul2_words_ul2_x_8_50')
        dataset = task.get_dataset({'inputs': 128, 'targets': 96}, 'train', shuffle=False)
        one = next(dataset.as_numpy_iterator())
    assert one['inputs'][0] == VOCABULARY.mode_token_id('[NLG]') and one['targets'][-1] == 1


def test_gin_replaces_and_adds_mixtures(corpus):
    mine = (Denoiser('a', 'R', 4.0, 0.2, rate=3), Denoiser('b', 'C'), Denoiser('off', 'C', rate=0))
    register_all(config('x', text_files=(corpus,), denoisers={'mine': mine, 'ul2': mine[:1]}))
    rates = {task.name: rate for task, rate in tasks_and_rates(find_mixture('ul2_words_mine'))}
    assert rates == {'ul2_words_mine_a': 0.75, 'ul2_words_mine_b': 0.25}
    assert [task.name for task in find_mixture('ul2_words_ul2').tasks] == ['ul2_words_ul2_a']
    assert describe_mixture(config('ul2_words_mine', text_files=(corpus,)), VOCABULARY, 5)['tasks'][0]['sampled'] == 5
    register_all(config('x', text_files=(corpus,)))
    assert len(find_mixture('ul2_words_ul2').tasks) == 7
    line = r"DataConfig.denoisers\['causal_lm'\]: \w+_causal_lm is another task or mixture"
    with pytest.raises(UserError, match=line):
        register_all(config('x', denoisers={'causal_lm': mine}))


def test_a_mode_token_that_the_vocabulary_lacks_is_one_line(corpus):
    mine = (Denoiser('a', 'R', 3.0, 0.15, mode_token='[ABC]'),)
    settings = config('ul2_words_mine', denoisers={'mine': mine}, text_files=(corpus,))
    register_all(settings)
    line = r"no mode token '\[ABC\]'.*Set Denoiser.mode_token='' or DataConfig.mode_tokens"
    with pytest.raises(UserError, match=line):
        next(TrainPipeline(settings, VOCABULARY))
    bare = next(TrainPipeline(config('ul2_words_ul2', mode_tokens=()), ByteVocabulary(100)))[0]
    assert bare['encoder_input_tokens'].max() < 359, 'UL2 without mode tokens'


def test_a_corpus_of_empty_documents_is_one_line(tmp_path):
    path = tmp_path / 'short.txt'
    path.write_text('a\nb\nc\n')
    files = TextFiles('ul2_short', str(path), validation=str(path), unit='line')
    settings = config('ul2_short_ul2_r_3_15', text_files=(files,))
    register_all(settings)
    line = 'no example of a whole epoch can be used.*Check what it reads .TextFiles.train., or set another DataConfig'
    with pytest.raises(UserError, match=f'{line}.mixture'):
        next(TrainPipeline(settings, VOCABULARY))


def test_the_run_file_holds_the_same_denoisers():
    settings = configurables.parse(['runs/ul2.gin'], ['MIXTURE=stdlib_docs_ul2', 'VOCABULARY=bytes'])
    data = settings.read(DataConfig)
    assert {name: data.denoisers[name] for name in ul2.denoisers()} == ul2.denoisers()
    assert {name: [one.kind for one in data.denoisers[name]] for name in ('t5', 'prefix', 'causal')} == {
        't5': ['R'],
        'prefix': ['S'],
        'causal': ['C'],
    }
    register_all(data)
    try:
        for name in ('ul2', 'u_palm', 't5', 'prefix', 'causal'):
            made = describe_mixture(config(f'stdlib_docs_{name}', concatenate=4), VOCABULARY, 3)
            assert all(row['sampled'] == 3 and row['too_long'] == 0 for row in made['tasks'])
    finally:
        register_all(config('x'))


def test_too_few_sentinels_are_reported_at_the_end_of_a_run(corpus):
    lengths = {'inputs': 128, 'targets': 128}
    options = dict(text_files=(corpus,), extra_ids=4, concatenate=16, feature_lengths=lengths)
    with TrainPipeline(config('ul2_words_ul2', **options), ByteVocabulary(4, MODES)) as pipeline:
        for _ in range(4):
            next(pipeline)
        counts = {name: task['few_sentinels'] for name, task in pipeline.report()['tasks'].items()}
        lines = pipeline.report_lines()
    assert counts['ul2_words_ul2_x_3_50'] > 0 and counts['ul2_words_ul2_x_64_15'] == counts['ul2_words_ul2_s'] == 0
    (line,) = [line for line in lines if line.startswith('ul2_words_ul2_x_3_50: ')]
    assert 'would outnumber the sentinels (DataConfig.extra_ids)' in line
