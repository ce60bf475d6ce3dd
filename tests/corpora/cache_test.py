"""t5flan/corpora/cache.py: cached tasks train on the same batches; a stale or incomplete cache is an error."""

import dataclasses
import json

import numpy as np
import pytest
import seqio
from etils import epath

from t5flan.corpora.cache import cache, finish, write_shard
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import TextFiles
from t5flan.data.mixtures.cache import cached_task, made_with
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.seqio_vocabulary import choose_vocabulary, text_features
from t5flan.errors import UserError
from t5flan.tasks import register_all
from tests.tasks.tfds_loader import Loader

VOCABULARY = ByteVocabulary(100, ['[NLU]', '[NLG]', '[S2S]'])


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A corpus of 60 short texts."""
    file = tmp_path_factory.mktemp('text') / 'texts.txt'
    file.write_text('\n\n'.join(f'Text {i}: ' + 'und so weiter ✓ ' * (i % 7 + 1) for i in range(60)), encoding='utf-8')
    config = DataConfig(
        'cached_ul2',
        4,
        {'inputs': 96, 'targets': 96},
        'bytes',
        mode_tokens=VOCABULARY.mode_tokens,
        prefetch=0,
        concatenate=4,
        text_files=(TextFiles('cached', str(file), unit='paragraph', held_out=0.1),),
    )
    register_all(config)
    choose_vocabulary(VOCABULARY)
    return config


def write(task, root, splits=('train', 'validation'), shards=3):
    """Does the work of the workers of `t5flan cache`, one after the other."""
    made = made_with(task, VOCABULARY)
    for split in splits:

        def emit(shard, split=split):
            dataset = task.source.get_dataset(split, shuffle=False, shard_info=seqio.ShardInfo(shard[0], shards))
            return iter(task.preprocess_precache(dataset))

        for number in range(shards):
            write_shard(emit, str(root / task.name), split, shards, made, (number, ''))
    return finish(epath.Path(root / task.name), dict.fromkeys(splits, shards), made)


@pytest.fixture(scope='module')
def cached(data, tmp_path_factory):
    root = tmp_path_factory.mktemp('cache')
    first, *others = find_mixture('cached_ul2').tasks
    write(first, root)
    for other in others:
        (root / other.name).mkdir()
        (root / other.name / 'info.json').write_text(json.dumps({'version': 1, 'same_as': first.name}))
    return dataclasses.replace(data, cache=str(root))


def batches(config, count=12):
    with TrainPipeline(config, VOCABULARY) as pipeline:
        return [next(pipeline)[0] for _ in range(count)]


def test_training_from_the_cache_sees_the_same_batches(data, cached):
    for ours, theirs in zip(batches(cached), batches(data), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_the_source_is_not_read(cached, monkeypatch):
    source = find_mixture('cached_ul2').tasks[0].source
    monkeypatch.setattr(source, 'records', lambda split: pytest.fail('the source was opened'))
    batches(cached, 1)


def test_records_and_counts(data, cached):
    task = cached_task(find_mixture('cached_ul2_s'), cached, VOCABULARY)
    records = task.source.records('train')
    texts = find_mixture('cached_ul2_s').source.records('train')
    assert len(records) == len(texts) == task.num_input_examples('train')
    assert [VOCABULARY.decode(record['targets']) for record in records] == [text['text'] for text in texts]
    info = json.loads((epath.Path(cached.cache) / find_mixture('cached_ul2').tasks[0].name / 'info.json').read_text())
    assert info['splits']['train']['tokens']['targets'] == sum(len(record['targets']) for record in records)


def test_fields_of_every_kind_come_back(tmp_path):
    kept = example_fn(
        lambda example, context: {**example, 'long': [1.5, 2.5], 'ids': np.arange(3, dtype=np.int64), 'flag': True}
    )
    rows = [{'targets': 'ein Bär', 'number': 7, 'score': 0.25, 'words': ['a', 'ß']}] * 2
    task = seqio.Task(
        'of_every_kind',
        IndexedSource({'train': rows}),
        text_features(False),
        preprocessors=[kept.before_cache(), seqio.CacheDatasetPlaceholder()],
    )
    write(task, tmp_path, ('train',), 1)
    config = DataConfig('of_every_kind', 1, {'targets': 8}, 'bytes', format='causal_lm', cache=str(tmp_path))
    record = cached_task(task, config, VOCABULARY).source.records('train')[1]
    plain = {'targets': 'ein Bär', 'number': 7, 'score': 0.25, 'words': ['a', 'ß'], 'flag': True}
    assert {name: record[name] for name in plain} == plain and record['flag'] is True
    assert record['ids'].dtype == np.int64 and record['ids'].tolist() == [0, 1, 2]
    assert record['long'].tolist() == [1.5, 2.5]


def test_a_tfds_corpus_is_read_in_one_shuffle(data, tmp_path, monkeypatch):
    """Without a cache its records are read in order, through a buffer."""
    task = find_mixture('c4_causal_lm')
    monkeypatch.setattr(task.source, '_tfds_dataset', Loader({'text': [f'{i:03}' for i in range(200)]}))
    write(task, tmp_path, ('train',), 2)
    config = DataConfig(
        'c4_causal_lm', 1, {'targets': 4}, 'bytes', format='causal_lm', pack=False, prefetch=0, cache=str(tmp_path)
    )
    rows = [VOCABULARY.decode(batch['decoder_target_tokens'][0]) for batch in batches(config, 200)]
    assert sorted(rows) == [f'{i:03}' for i in range(200)] != rows
    assert np.abs(np.corrcoef([int(row) for row in rows], range(200))[0, 1]) < 0.3


def test_an_existing_shard_is_not_written_again(data, tmp_path):
    task = find_mixture('cached_causal_lm')
    info = write(task, tmp_path)
    made = made_with(task, VOCABULARY)
    write_shard(lambda shard: pytest.fail('made again'), str(tmp_path / task.name), 'train', 3, made, (1, ''))
    assert finish(epath.Path(tmp_path / task.name), {'train': 3, 'validation': 3}, made) == info
    with pytest.raises(pytest.fail.Exception):  # except with other preprocessors
        write_shard(lambda shard: pytest.fail('made again'), str(tmp_path / task.name), 'train', 3, {}, (1, ''))


def test_a_shard_is_whole_or_absent(data, tmp_path):
    def emit(shard):
        yield {'targets': np.arange(3)}
        raise RuntimeError('the disk is full')

    with pytest.raises(RuntimeError):
        write_shard(emit, str(tmp_path / 'task'), 'train', 1, {}, (0, ''))
    assert not list(tmp_path.rglob('*.*'))


def check_error(config, match):
    with pytest.raises(UserError, match=match) as caught:
        batches(config, 1)
    assert '\n' not in str(caught.value)


def test_a_cache_that_does_not_fit_is_one_line(data, cached, tmp_path):
    check_error(
        dataclasses.replace(data, cache=str(tmp_path)),
        r'holds none of cached_ul2_r_3_15.*Run `t5flan cache cached_ul2 --output=',
    )
    other = ByteVocabulary(50, VOCABULARY.mode_tokens)
    with pytest.raises(
        UserError, match='cached with another vocabulary .* Set DataConfig.vocabulary, or cache cached_ul2_s again'
    ):
        cached_task(find_mixture('cached_ul2_s'), cached, other)
    first = find_mixture('cached_ul2').tasks[0]
    write(first, tmp_path)
    config = dataclasses.replace(data, cache=str(tmp_path), mixture=first.name)
    info = json.loads((tmp_path / first.name / 'info.json').read_text())
    (tmp_path / first.name / 'train.array_record-00001-of-00003').unlink()
    check_error(config, 'train.array_record-00001-of-00003 is missing: the cache is incomplete')
    info['made_with']['preprocessors'] = ['other()']
    (tmp_path / first.name / 'info.json').write_text(json.dumps(info))
    check_error(config, r"cached with other preprocessors \(\['other\(\)'\]\)")
    (tmp_path / first.name / 'info.json').write_text('{"version": 99}')
    check_error(config, 'info.json was not written by this version of `t5flan cache`')


def test_caching_needs_beam_and_a_placeholder_in_the_task(data, tmp_path):
    pytest.importorskip('apache_beam', reason="pip install 't5flan[beam]'")
    run = lambda name, **options: cache(data, name, str(tmp_path), prepare=register_all, **options)
    with pytest.raises(UserError, match='practice_.* cannot be cached without a seqio.CacheDatasetPlaceholder'):
        run('practice')
    with pytest.raises(UserError, match="has no split 'tests'; it has train, validation. Set --splits"):
        run('cached_ul2', splits=['tests'])


@pytest.mark.slow
def test_the_beam_pipeline_writes_what_its_workers_do(data, cached, tmp_path):
    pytest.importorskip('apache_beam', reason="pip install 't5flan[beam]'")
    first = find_mixture('cached_ul2').tasks[0].name
    made = cache(data, 'cached_ul2', str(tmp_path / 'a'), prepare=register_all, splits=['validation'])
    assert set(made) == {task.name for task in find_mixture('cached_ul2').tasks}
    made = cache(data, 'cached_ul2', str(tmp_path / 'a'), prepare=register_all)  # the other split
    assert set(made[first]['splits']) == {'train', 'validation'}
    cache(
        data,
        'cached_ul2',
        str(tmp_path / 'b'),
        prepare=register_all,
        pipeline_options=['--direct_num_workers=2', '--direct_running_mode=multi_processing'],
    )
    files = sorted(path.relative_to(tmp_path / 'a') for path in (tmp_path / 'a').rglob('*') if path.is_file())
    assert all((tmp_path / 'a' / path).read_bytes() == (tmp_path / 'b' / path).read_bytes() for path in files)
    for ours, theirs in zip(batches(dataclasses.replace(data, cache=str(tmp_path / 'a'))), batches(data), strict=True):
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(UserError, match='made with .* Set another --output, or --overwrite'):
        cache(dataclasses.replace(data, extra_ids=50), 'cached_ul2', str(tmp_path / 'a'), prepare=register_all)
