"""`t5flan lm_eval` hands its arguments on, and says what to install."""

import sys

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments


def test_arguments_are_handed_on():
    line = ['--model=t5flan', '--gin.a=1', '--unknown', 'x', '--help']
    command, arguments = parse_arguments(['lm_eval', *line], COMMANDS)
    assert command.name == 'lm_eval' and arguments.foreign == line


def test_help_without_lm_eval(cli):
    for line in (['lm_eval'], ['lm_eval', '--help'], ['lm_eval', '-h']):
        code, out, _ = cli(*line)
        assert code == 0 and 't5flan lm_eval run --help' in out


def test_a_missing_package_is_reported(cli, monkeypatch):
    for name in [name for name in sys.modules if name.split('.')[0] == 'lm_eval']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'lm_eval', None)
    monkeypatch.delitem(sys.modules, 't5flan.evaluation.harness', raising=False)
    code, _, err = cli('lm_eval', '--model=t5flan', '--tasks=arc_easy')
    assert code == 1 and err.startswith('t5flan: lm-eval is missing') and "pip install 't5flan[eval]'" in err
    assert err.count('\n') == 1
