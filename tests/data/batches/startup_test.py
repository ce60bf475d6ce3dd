"""A mixture of hundreds of tasks starts in seconds: a file is read when its task is first used."""

import json
import os
import subprocess
import sys

import pytest

COUNTS = """
import json, sys, time
from t5flan.config.memory import peak_resident_memory
from t5flan.tasks import register_all
from t5flan.data.config import DataConfig
from t5flan.reporting.mixture_report import describe_mixture
from t5flan.data.batches.pipeline import TrainPipeline
from t5flan.data.vocabulary.loading import load_vocabulary
started = time.perf_counter()
vocabulary = load_vocabulary('bytes')
lengths = {'inputs': 512, 'targets': 114}
config = DataConfig('natural_instructions', 64, lengths, 'bytes', natural_instructions=sys.argv[1])
register_all(config)
with TrainPipeline(config, vocabulary) as pipeline:
    next(pipeline)
    first = time.perf_counter() - started
started = time.perf_counter()
tasks = len(describe_mixture(config, vocabulary)['tasks'])
memory = peak_resident_memory() / 2**30
print(json.dumps([first, time.perf_counter() - started, tasks, memory]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('tasks, seconds', [(300, 20), (1800, 60)])
def test_a_mixture_of_many_tasks_starts_in_seconds(tmp_path, tasks, seconds):
    instances = [
        {'id': str(i), 'input': f'Which number is {i} words long? ' + 'word ' * (i % 60), 'output': [str(i)]}
        for i in range(200)
    ]
    for number in range(tasks):
        example = {'input': 'one word', 'output': '1', 'explanation': 'It is one.'}
        task = {
            'Definition': [f'Task {number}: count.'],
            'Positive Examples': [example],
            'Negative Examples': [],
            'Instances': instances,
        }
        (tmp_path / f'task{number:04}_count.json').write_text(json.dumps(task, indent=2))
    done = subprocess.run(
        [sys.executable, '-c', COUNTS, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {'XDG_CACHE_HOME': str(tmp_path / 'cache')},
    )
    first, described, found, memory = json.loads(done.stdout.splitlines()[-1])
    assert found == tasks and first < seconds and described < seconds and memory < 4
