"""t5flan/data/describe.py: what `t5flan mixture` says."""

import json

import pytest
import seqio

from t5flan.data import describe
from t5flan.data.config import DataConfig
from t5flan.data.examples import append_eos, tokenize
from t5flan.data.seqio_bridge import text_features
from t5flan.data.sources import IndexedSource


def test_the_numbers_are_those_of_the_examples(tmp_path, capsys):
    for name, size in (('describe_short', 3), ('describe_long', 12)):
        records = [{'inputs': name[-5] * size, 'targets': 'b' * (i % 2 + 1)} for i in range(10)]
        seqio.TaskRegistry.add(name, source=IndexedSource({'train': records}), preprocessors=[tokenize, append_eos], output_features=text_features())
    seqio.MixtureRegistry.add('describe_both', [('describe_short', 3), ('describe_long', 1)])
    settings = DataConfig('describe_both', 4, {'inputs': 8, 'targets': 3}, 'bytes', too_long='drop')
    made = describe.main(settings, str(tmp_path / 'out.json'), shown=2)
    assert made == json.loads((tmp_path / 'out.json').read_text('utf-8'))
    long, short = made['tasks']
    assert (short['task'], short['rate'], short['records'], short['sampled'], short['too_long']) == ('describe_short', 0.75, 10, 10, 0)
    assert (short['input_tokens'], short['target_tokens']) == (4.0, 2.5)
    assert (long['input_tokens'], long['too_long'], long['rate']) == (13.0, 1.0, 0.25)
    assert [example['task'] for example in made['examples']] == ['describe_long', 'describe_short']
    printed = capsys.readouterr().out
    assert 'describe_short' in printed and '75.00%' in printed and pytest.approx(2.5) == short['target_tokens']
