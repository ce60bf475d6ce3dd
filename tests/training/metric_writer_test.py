"""t5flan/training/metric_writer.py: each step has one row, also after a kill; plain lines without a terminal."""

import io
import json
import time

import pytest

from t5flan.training.metric_writer import MetricWriter, read_metrics


def make_writer(folder, start_step=0, stream=None):
    return MetricWriter(folder, start_step=start_step, total_steps=20, stream=stream or io.StringIO())


def write_five_steps_and_resume_from_three(folder):
    writer = make_writer(folder)
    for step in range(1, 6):
        writer.write(step, {'loss': float(step)})
    writer.close()
    with (folder / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 6, "lo')  # a kill in the middle of a line
    writer = make_writer(folder, start_step=3)
    writer.write(4, {'loss': 40.0})
    writer.close()


def test_rows_are_read_back(tmp_path):
    writer = make_writer(tmp_path)
    writer.write(1, {'loss': 2.5})
    writer.write(2, {'loss': 2.25, 'accuracy': 0.5})
    writer.close()
    assert read_metrics(tmp_path) == [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': 2.25, 'accuracy': 0.5}]


def test_resuming_drops_the_rows_after_the_checkpoint(tmp_path):
    write_five_steps_and_resume_from_three(tmp_path)
    assert [(row['step'], row['loss']) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_row_is_on_disk_before_the_next(tmp_path):
    writer = make_writer(tmp_path)
    writer.write(1, {'loss': 1.0})
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'loss': 1.0}
    writer.close()


def test_progress_is_a_plain_line_without_a_terminal(tmp_path):
    stream = io.StringIO()
    writer = make_writer(tmp_path, stream=stream)
    writer.progress(10, {'loss': 1.23456, 'tokens_per_second': 12345.6, 'model_flops_utilisation': 0.4321}, 3725)
    writer.close()
    assert stream.getvalue() == 'step 10/20  loss 1.2346  12,346 tokens/s  43.2 % MFU  1:02:05 left\n'


def test_other_hosts_write_nothing(tmp_path):
    writer = MetricWriter(tmp_path, start_step=0, total_steps=1, active=False)
    writer.write(1, {'loss': 1.0})
    writer.log('hello')
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_the_same_numbers_and_drops_those_of_a_killed_run(tmp_path):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    write_five_steps_and_resume_from_three(tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_restart_within_a_second_is_read_after_the_run_before(tmp_path):
    pytest.importorskip('tensorboard')
    folder = tmp_path / 'tensorboard'
    folder.mkdir()
    before = f'events.out.tfevents.{int(time.time())}.zzz.1.0'  # TensorBoard reads files in the order of their names
    (folder / before).touch()
    make_writer(tmp_path).close()
    assert min(path.name for path in folder.iterdir()) == before


def test_an_evaluation_is_one_readable_line(tmp_path):
    stream = io.StringIO()
    writer = make_writer(tmp_path, stream=stream)
    writer.write_evaluation(0, {'eval/loss': 3.0, 'eval/accuracy': 0.25})
    writer.write_evaluation(5, {'eval/loss': 2.0, 'eval/accuracy': 0.5})
    writer.close()
    writer = make_writer(tmp_path, start_step=5, stream=stream)  # a resumed run knows the earlier ones
    tasks = {'eval/loss/a': 2.5, 'eval/accuracy/a': 0.5, 'eval/loss/b': 1.5, 'eval/accuracy/b': 0.6}
    sample = {'task': 'a', 'input': 'x', 'prediction': 'ü'}
    writer.write_evaluation(10, {'eval/loss': 2.25, 'eval/accuracy': 0.4, **tasks, 'eval/f1': 12.5}, [sample])
    writer.close()
    assert stream.getvalue().splitlines() == [
        'step 0  eval/loss 3.0000  eval/accuracy 0.2500',
        'step 5  eval/loss 2.0000 (at step 0 3.0000, best 2.0000 at 5)  eval/accuracy 0.5000',
        'step 10  eval/loss 2.2500 (at step 0 3.0000, best 2.0000 at 5)  eval/accuracy 0.4000  eval/f1 12.5000',
        '  loss by task: a 2.5000, b 1.5000',
    ]
    assert json.loads((tmp_path / 'samples.jsonl').read_text()) == {'step': 10, **sample}
    assert read_metrics(tmp_path)[-1]['eval/loss/b'] == 1.5


def test_progress_shows_flops_and_memory(tmp_path):
    stream = io.StringIO()
    writer = make_writer(tmp_path, stream=stream)
    writer.progress(1, {'loss': 1.0, 'tflops_per_second_per_device': 0.0521, 'peak_memory_gib': 2.34}, None)
    writer.close()
    assert stream.getvalue() == 'step 1/20  loss 1.0000  0.0521 TFLOP/s  2.3 GiB\n'
