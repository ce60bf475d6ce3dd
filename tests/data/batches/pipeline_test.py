"""t5flan/data/batches/: the same batches on any hosts and after any stop; no example is lost or repeated."""

import dataclasses
import json
import random
import threading
import time

import numpy as np
import pytest
import seqio
import tensorflow as tf

from t5flan.data.batches.pipeline import TrainPipeline, eval_batches, eval_examples
from t5flan.data.batches.streams import merge_positions
from t5flan.data.config import DataConfig
from t5flan.data.preprocessing.denoising import span_corruption
from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError
from tests.vocabulary import vocabulary_chosen

VOCABULARY = ByteVocabulary(extra_ids=50)
LENGTHS = {'inputs': 40, 'targets': 24}


class Numbers:
    """Records made from their number."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {'inputs': f'{self.name} {index} ' + 'x' * (index % 7), 'targets': f'{index}'}


@example_fn
def drop_some_and_draw(example, context):
    """Drops one in five; the others get a random number."""
    return (
        None
        if int(example['targets']) % 5 == 0
        else {**example, 'targets': f'{example["targets"]}:{context.rng.integers(1000)}'}
    )


@example_fn
def as_text(example, context):
    return {'targets': example['inputs'] * (1 + int(example['targets']) % 6)}


def add(name, size, preprocessors=(tokenize, append_eos), **options):
    source = IndexedSource({'train': Numbers(name, size), 'validation': Numbers(name, max(3, size // 10))})
    seqio.TaskRegistry.add(
        name, source=source, preprocessors=list(preprocessors), output_features=text_features(), **options
    )


@pytest.fixture(scope='module', autouse=True)
def tasks():
    add('pipe_plain', 500)
    add('pipe_small', 7)
    add('pipe_filtered', 60, [drop_some_and_draw, tokenize, append_eos])
    add('pipe_denoised', 40, [as_text, tokenize, span_corruption, append_eos])
    seqio.MixtureRegistry.add(
        'pipe_mixture', [('pipe_plain', 5), ('pipe_small', 1), ('pipe_filtered', 2), ('pipe_denoised', 2)]
    )
    records = [Numbers('tf', 90)[i] for i in range(90)]
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tf.data.Dataset.from_tensor_slices(
            {name: [record[name] for record in records] for name in ('inputs', 'targets')}
        ),
        splits=['train', 'validation'],
        num_input_examples={'train': 90, 'validation': 90},
    )
    features = {name: dataclasses.replace(feature, add_eos=True) for name, feature in text_features().items()}
    seqio.TaskRegistry.add(
        'pipe_seqio',
        source=source,
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features=features,
    )
    seqio.TaskRegistry.add(
        'pipe_streamed',
        source=source,
        preprocessors=[drop_some_and_draw, tokenize, append_eos],
        output_features=features,
    )
    seqio.MixtureRegistry.add('pipe_both', [('pipe_plain', 1), ('pipe_seqio', 1), ('pipe_streamed', 1)])
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith('pipe_')]:
            registry.remove(name)


def config(mixture='pipe_mixture', **options):
    return DataConfig(
        **{
            'mixture': mixture,
            'batch_size': 12,
            'feature_lengths': LENGTHS,
            'vocabulary': 'bytes',
            'streams': 3,
            'prefetch': 0,
        }
        | options
    )


def take(pipeline, count):
    return [next(pipeline) for _ in range(count)]


def same(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def segments(batch, side='decoder', tokens='decoder_target_tokens'):
    """The examples of a packed batch, as lists of tokens, row by row."""
    rows = zip(batch[tokens], batch[f'{side}_segment_ids'], strict=True)
    return [row[ids == segment].tolist() for row, ids in rows for segment in range(1, ids.max() + 1)]


@pytest.mark.parametrize('mixture,hosts', [('pipe_mixture', 2), ('pipe_mixture', 4), ('pipe_both', 4)])
def test_several_hosts_have_the_batch_of_one(mixture, hosts):
    one = take(TrainPipeline(config(mixture), VOCABULARY), 6)
    parts = [
        TrainPipeline(config(mixture), VOCABULARY, process_index=host, process_count=hosts) for host in range(hosts)
    ]
    for batch, position in one:
        made = [next(part) for part in parts]
        same(batch, {name: np.concatenate([rows[name] for rows, _ in made]) for name in batch})
        assert merge_positions([part for _, part in made]) == position


@pytest.mark.parametrize('mixture', ['pipe_mixture', 'pipe_both'])
@pytest.mark.parametrize('prefetch', [0, 3])
def test_every_stop_resumes_with_the_same_batches(mixture, prefetch):
    whole = take(TrainPipeline(config(mixture), VOCABULARY), 30)
    rng = random.Random(prefetch)
    # Opening tf.data takes a second each time; without it there are more stops.
    for stop in [1, *rng.sample(range(2, 27), 5)] if mixture == 'pipe_mixture' else [rng.randrange(2, 27)]:
        with TrainPipeline(config(mixture, prefetch=prefetch), VOCABULARY) as first:
            position = take(first, stop)[-1][1]
            assert position == first.position == whole[stop - 1][1], 'batches prepared ahead do not count'
        with TrainPipeline(config(mixture, prefetch=prefetch), VOCABULARY) as second:
            second.start(json.loads(json.dumps(position)))
            for (batch, at), (expected, expected_at) in zip(take(second, 3), whole[stop:], strict=False):
                same(batch, expected)
                assert at == expected_at


def test_a_pipeline_can_go_back_and_be_closed_in_between():
    with TrainPipeline(config(prefetch=2), VOCABULARY) as pipeline:
        whole = take(pipeline, 6)
        pipeline.start(whole[1][1])
        same(next(pipeline)[0], whole[2][0])
        pipeline.close()
        same(next(pipeline)[0], whole[3][0])
        pipeline.start()
        same(next(pipeline)[0], whole[0][0])


def test_another_number_of_hosts_resumes_from_merged_positions():
    whole = take(TrainPipeline(config(), VOCABULARY), 5)
    parts = [TrainPipeline(config(), VOCABULARY, process_index=host, process_count=4) for host in range(4)]
    positions = [take(part, 4)[-1][1] for part in parts]
    pipeline = TrainPipeline(config(), VOCABULARY)
    pipeline.start(merge_positions(positions))
    same(next(pipeline)[0], whole[4][0])
    with pytest.raises(UserError, match='lacks stream'):
        pipeline.start(positions[0])
    with pytest.raises(UserError, match='has 3 streams, the settings give 1. Set DataConfig.streams = 3'):
        TrainPipeline(config(streams=1), VOCABULARY).start(positions[0])


def test_a_file_that_changed_stops_the_run():
    position = take(TrainPipeline(config('pipe_plain'), VOCABULARY), 1)[0][1]
    position['records'] = {'pipe_plain': 499}
    with pytest.raises(
        UserError, match='task pipe_plain had 499 records when the checkpoint was saved and has 500 now'
    ):
        TrainPipeline(config('pipe_plain'), VOCABULARY).start(position)


@pytest.mark.parametrize('mixture,size', [('pipe_plain', 500), ('pipe_small', 7)])
def test_an_epoch_has_every_example_once(mixture, size):
    pipeline = TrainPipeline(config(mixture), VOCABULARY)
    seen = {}
    while len(seen) < 2 * size:
        for tokens in segments(next(pipeline)[0], 'encoder', 'encoder_input_tokens'):
            text = VOCABULARY.decode(tokens)
            seen[len(seen)] = text
        assert len(seen) < 3 * size + 200
    counts = np.unique(list(seen.values()), return_counts=True)[1]
    # Streams are at most a batch apart, so the third epoch may start before the second ends.
    assert len(counts) == size and counts.min() >= 1 and counts.max() <= 4


def test_one_stream_has_every_example_once_an_epoch_in_a_new_order():
    with TrainPipeline(config('pipe_plain', streams=1), VOCABULARY) as pipeline:
        texts = [
            VOCABULARY.decode(t)
            for batch, _ in take(pipeline, 120)
            for t in segments(batch, 'encoder', 'encoder_input_tokens')
        ]
    epochs = [texts[:500], texts[500:1000]]
    assert len(set(epochs[0])) == len(set(epochs[1])) == 500 and epochs[0] != epochs[1]
    assert np.mean([a == b for a, b in zip(*epochs, strict=True)]) < 0.02


@pytest.mark.slow
def test_shares_over_fifty_thousand_examples():
    pipeline = TrainPipeline(config(batch_size=256, streams=8), VOCABULARY)
    while sum(task['examples'] for task in pipeline.report()['tasks'].values()) < 50_000:
        next(pipeline)
    for name, task in pipeline.report()['tasks'].items():
        assert abs(task['share'] / task['rate'] - 1) < 0.01, (name, task)


def test_packed_examples_are_complete_and_separate():
    """Each segment holds the inputs and targets of one example; positions restart; nothing enters the padding."""
    batches = [batch for batch, _ in take(TrainPipeline(config('pipe_plain'), VOCABULARY), 5)]
    for batch in batches:
        inputs, targets = segments(batch, 'encoder', 'encoder_input_tokens'), segments(batch)
        for one, other in zip(inputs, targets, strict=True):
            text = VOCABULARY.decode(one)
            assert one[-1] == other[-1] == 1 and text.split()[1] == VOCABULARY.decode(other)
        for side in ('encoder', 'decoder'):
            ids, positions = batch[f'{side}_segment_ids'], batch[f'{side}_positions']
            new = np.diff(ids, axis=1, prepend=0) != 0
            assert (positions[new] == 0).all() and (positions[ids == 0] == 0).all()
            assert (np.diff(positions, axis=1)[~new[:, 1:] & (ids[:, 1:] > 0)] == 1).all()
        assert (batch['decoder_loss_weights'] == (batch['decoder_segment_ids'] > 0)).all()
    assert max(batch['decoder_segment_ids'].max() for batch in batches) >= 2


@pytest.mark.parametrize('format', ['encoder_decoder', 'prefix_lm', 'causal_lm'])
def test_packed_and_unpacked_have_the_same_examples(format):
    packed = TrainPipeline(config('pipe_plain', format=format, streams=1), VOCABULARY)
    plain = TrainPipeline(config('pipe_plain', format=format, streams=1, pack=False), VOCABULARY)
    made = [tokens for batch, _ in take(packed, 2) for tokens in segments(batch)]
    rows = [row[row > 0].tolist() for batch, _ in take(plain, 8) for row in batch['decoder_target_tokens']]
    # First fit may put a later example in an earlier row: within a batch the order differs.
    assert sorted(made) == sorted(rows[: len(made)])
    assert len(made) > 30


def test_too_long_examples_are_counted():
    lengths = {'inputs': 18, 'targets': 24}
    trimmed = TrainPipeline(config('pipe_plain', feature_lengths=lengths), VOCABULARY)
    dropped = TrainPipeline(config('pipe_plain', feature_lengths=lengths, too_long='drop'), VOCABULARY)
    for pipeline in (trimmed, dropped):
        take(pipeline, 20)
    count = trimmed.report()['tasks']['pipe_plain']
    assert 0 < count['trimmed'] < count['examples'] and count['dropped'] == 0
    assert any(line.startswith('pipe_plain: ') and 'were trimmed' in line for line in trimmed.report_lines())
    count = dropped.report()['tasks']['pipe_plain']
    assert count['trimmed'] == 0 and count['dropped'] > 0
    assert any('were dropped' in line for line in dropped.report_lines())
    for batch, _ in take(dropped, 3):
        assert all(tokens[-1] == 1 for tokens in segments(batch, 'encoder', 'encoder_input_tokens')), 'nothing was cut'


def test_a_mixture_without_usable_examples_is_an_error():
    with pytest.raises(UserError, match=r'task pipe_plain: no example of a whole epoch can be used: \d+ are longer'):
        next(
            TrainPipeline(
                config('pipe_plain', feature_lengths={'inputs': 4, 'targets': 4}, too_long='drop'), VOCABULARY
            )
        )


def test_an_error_in_the_thread_reaches_the_loop_and_the_thread_ends():
    @example_fn
    def fails_late(example, context):
        if context.key[3] == 40:
            raise UserError('record 40 is bad')
        return example

    add('pipe_fails', 100, [fails_late, tokenize, append_eos])
    pipeline = TrainPipeline(config('pipe_fails', prefetch=2, shuffle=False), VOCABULARY)
    with pytest.raises(UserError, match='record 40 is bad'):
        take(pipeline, 50)
    with pytest.raises(UserError, match='record 40 is bad'):
        next(pipeline)
    pipeline.close()
    assert not [thread for thread in threading.enumerate() if thread.name == 't5flan-data']


def test_the_thread_ends_with_the_pipeline():
    pipeline = TrainPipeline(config(prefetch=1), VOCABULARY)
    next(pipeline)
    del pipeline
    deadline = time.time() + 5
    while time.time() < deadline and [thread for thread in threading.enumerate() if thread.name == 't5flan-data']:
        time.sleep(0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == 't5flan-data']


def test_tokens_equal_seqios():
    for name in ('pipe_plain', 'pipe_denoised'):
        fast = list(eval_examples(config(name, split='train'), VOCABULARY, limit=20))
        with vocabulary_chosen(VOCABULARY):
            dataset = seqio.get_mixture_or_task(name).get_dataset(LENGTHS, 'train', shuffle=False)
            theirs = [one for one, _ in zip(dataset.as_numpy_iterator(), range(20), strict=False)]
        for ours, one in zip(fast, theirs, strict=True):
            # SeqIO has another seed, so the denoiser draws other numbers; the texts and their lengths agree.
            if name == 'pipe_plain':
                assert (
                    one['inputs'].tolist() == ours['inputs'].tolist()
                    and one['targets'].tolist() == ours['targets'].tolist()
                )
            assert [len(one['inputs']), len(one['targets'])] == [len(ours['inputs']), len(ours['targets'])]


def test_a_users_seqio_task_trains_unchanged():
    pipeline = TrainPipeline(config('pipe_seqio', streams=2), VOCABULARY)
    texts = [
        VOCABULARY.decode(tokens)
        for batch, _ in take(pipeline, 6)
        for tokens in segments(batch, 'encoder', 'encoder_input_tokens')
    ]
    expected = {Numbers('tf', 90)[i]['inputs'] for i in range(90)}
    assert set(texts) <= expected and len(set(texts[:90])) > 60
    single = TrainPipeline(config('pipe_seqio', streams=1), VOCABULARY)
    once = [
        VOCABULARY.decode(tokens)
        for batch, _ in take(single, 8)
        for tokens in segments(batch, 'encoder', 'encoder_input_tokens')
    ][:90]
    assert set(once) == expected and once != sorted(once), 'an epoch has every example once, shuffled'


@pytest.mark.parametrize('pack', [True, False])
def test_eval_batches_have_every_example_once(pack):
    batches = list(eval_batches(config(split='validation', pack=pack), VOCABULARY))
    assert {batch['decoder_target_tokens'].shape for batch in batches} == {(12, 24)}
    total = sum(int((batch['decoder_target_tokens'] == 1).sum()) for batch in batches)
    examples = sum(
        len(eval_examples(config(split='validation'), VOCABULARY, task))
        for task in ('pipe_plain', 'pipe_small', 'pipe_filtered', 'pipe_denoised')
    )
    assert total == examples
    padding = batches[-1]['decoder_target_tokens'] == 0
    assert (batches[-1]['decoder_loss_weights'][padding] == 0).all()
    for one, again in zip(batches, eval_batches(config(split='validation', pack=pack), VOCABULARY), strict=True):
        same(one, again)


def test_evaluation_drops_nothing():
    lengths = {'inputs': 18, 'targets': 24}
    batches = eval_batches(
        config('pipe_plain', split='validation', feature_lengths=lengths, too_long='drop'), VOCABULARY
    )
    assert sum(int((batch['decoder_target_tokens'] == 1).sum()) for batch in batches) == 50


def test_eval_batches_at_the_edge_of_a_batch():
    """As many examples as rows, one fewer, one more: no example is lost or repeated."""
    for count in (11, 12, 13, 24):
        name = f'pipe_edge_{count}'
        add(name, count)
        batches = list(eval_batches(config(name, split='train', pack=False), VOCABULARY))
        assert len(batches) == -(-count // 12)
        assert sum(int((batch['decoder_target_tokens'][:, 0] > 0).sum()) for batch in batches) == count


@pytest.mark.parametrize('task', ['pipe_plain', 'pipe_seqio', 'pipe_denoised'])
def test_eval_examples_hold_text_and_tokens(task):
    examples = eval_examples(config(split='validation'), VOCABULARY, task, limit=5)
    assert len(examples) == 5 and examples.counts.examples == 5
    for example in examples:
        for name in LENGTHS:
            assert isinstance(example[f'{name}_pretokenized'], str) and example[name].dtype == np.int32
            if task != 'pipe_denoised':
                assert VOCABULARY.decode(example[name]) == example[f'{name}_pretokenized']


@pytest.mark.parametrize(
    'options,pattern',
    [
        ({'mixture': 'pipe_plane'}, "no task or mixture 'pipe_plane'; the nearest are pipe_plain"),
        ({'split': 'test'}, "no task has a split 'test'"),
        ({'mixture': 'pipe_plain', 'split': 'test'}, 'the splits are train, validation'),
    ],
)
def test_a_wrong_setting_is_one_line(options, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        TrainPipeline(config(**options), VOCABULARY)
    assert '\n' not in str(error.value)


def test_hosts_must_divide_the_batch():
    with pytest.raises(UserError, match='DataConfig.batch_size=12 does not divide over 5 hosts'):
        TrainPipeline(config(), VOCABULARY, process_index=0, process_count=5)
