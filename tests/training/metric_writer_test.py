"""t5flan/training/metric_writer.py: rows stand once, also after a kill; plain lines where there is no terminal."""

import io
import json

import pytest

from t5flan.training.metric_writer import Journal, read_metrics


def journal(folder, first_step=0, stream=None):
    return Journal(folder, first_step=first_step, total_steps=20, stream=stream or io.StringIO())


def test_rows_are_read_back(tmp_path):
    log = journal(tmp_path)
    log.write(1, {'loss': 2.5})
    log.write(2, {'loss': 2.25, 'accuracy': 0.5})
    log.close()
    assert read_metrics(tmp_path) == [{'step': 1, 'loss': 2.5}, {'step': 2, 'loss': 2.25, 'accuracy': 0.5}]


def test_going_on_drops_what_was_written_beyond_the_checkpoint(tmp_path):
    log = journal(tmp_path)
    for step in range(1, 6):
        log.write(step, {'loss': float(step)})
    log.close()
    with (tmp_path / 'metrics.jsonl').open('a') as f:
        f.write('{"step": 6, "lo')  # a kill in the middle of a line
    log = journal(tmp_path, first_step=3)
    log.write(4, {'loss': 40.0})
    log.close()
    assert [(row['step'], row['loss']) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_row_is_on_disk_before_the_next(tmp_path):
    log = journal(tmp_path)
    log.write(1, {'loss': 1.0})
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 1, 'loss': 1.0}
    log.close()


def test_progress_is_a_plain_line_without_a_terminal(tmp_path):
    stream = io.StringIO()
    log = journal(tmp_path, stream=stream)
    log.progress(10, {'loss': 1.23456, 'tokens_per_second': 12345.6, 'model_flops_utilisation': 0.4321}, 3725)
    log.close()
    assert stream.getvalue() == 'step 10/20  loss 1.2346  12,346 tokens/s  43.2 % MFU  1:02:05 left\n'


def test_other_hosts_write_nothing(tmp_path):
    log = Journal(tmp_path, first_step=0, total_steps=1, active=False)
    log.write(1, {'loss': 1.0})
    log.say('hello')
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_the_same_numbers_and_drops_a_killed_runs(tmp_path):
    event_accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    log = journal(tmp_path)
    for step in range(1, 6):
        log.write(step, {'loss': float(step)})
    log.close()
    log = journal(tmp_path, first_step=3)
    log.write(4, {'loss': 40.0})
    log.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars('loss')] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
