"""Adapters by name over one base: from Python and from the command line, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import t5flan
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.conversion import convert
from t5flan.errors import UsageError, UserError
from t5flan.evaluation.steps import load_if_there
from t5flan.mesh import MeshConfig
from tests.adapters.properties import write_adapter
from tests.saved_model import byte_model, save_folder

SETTINGS = {'de': Lora(rank=2, targets=['.*/mlp/.*/kernel']), 'fr': Ia3(), 'it': PromptTuning(tokens=2)}
FEATURES = ('encoder_input_tokens', 'decoder_input_tokens')
TEXTS = ['ab', 'a longer one', 'c', 'xyz']


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """(the base's folder, name -> the adapter's)."""
    root = tmp_path_factory.mktemp('runs')
    base = save_folder(root / 'base', byte_model(), steps=(3,))
    return base, {name: write_adapter(root / name, base, one) for name, one in SETTINGS.items()}


def run(*argv, command='infer'):
    command, arguments = parse_arguments([command, *argv], COMMANDS)
    command.run(arguments)


@pytest.mark.slow
@pytest.mark.parametrize('mesh', [None, MeshConfig(data=2, tensor=2, fsdp=2)], ids=['one device', 'mesh'])
def test_each_row_is_answered_by_its_adapter_alone(folders, mesh):
    base, paths = folders
    together = t5flan.load(base, adapters=paths, mesh=mesh)
    assert together.adapters == ('de', 'fr', 'it')
    for choice in (['de', 'fr', None, 'it'], None):
        answers = together.generate(TEXTS, 6, adapter=choice)
        scores = together.score(TEXTS, answers, adapter=choice)
        for row, name in enumerate(choice or [None] * 4):
            alone = t5flan.load(paths.get(name, base))
            assert alone.generate(TEXTS, 6)[row] == answers[row]
            assert alone.score([TEXTS[row]], [answers[row]])[0] == pytest.approx(scores[row], rel=1e-4)


@pytest.mark.slow
def test_rows_of_a_file_name_their_adapters(folders, tmp_path, capsys):
    base, paths = folders
    rows = [{'inputs': TEXTS[0], 'adapter': 'fr'}, {'inputs': TEXTS[1]}, {'inputs': TEXTS[2], 'adapter': None}]
    (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    given = [f'--checkpoint={base}', f'--adapters=de={paths["de"]},fr={paths["fr"]}', '--max_new_tokens=6']
    to_file = [*given, f'--input={tmp_path}/rows.jsonl', f'--output={tmp_path}/out.jsonl', '--adapter=de']
    run(*to_file)
    found = [json.loads(line)['prediction'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    expected = [
        t5flan.load(paths.get(name, base)).generate([text], 6)[0] for name, text in zip(['fr', 'de', 'x'], TEXTS)
    ]
    assert found == expected
    capsys.readouterr()
    run(*given, f'--prompt={TEXTS[1]}', '--adapter=de')
    assert capsys.readouterr().out == expected[1] + '\n'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['de', 'it'])
def test_evaluate_measures_an_adapter_over_its_base(folders, tmp_path, name):
    """The predictions and scores are those of the folder of the adapter, which loads its base itself."""
    base, paths = folders
    given = {'alone': [f'--checkpoint={paths[name]}']}
    pairs = ','.join(f'{one}={folder}' for one, folder in paths.items())
    given['over'] = [f'--checkpoint={base}', f'--adapters={pairs}', f'--adapter={name}']
    tables, rows = {}, {}
    for kind, flags in given.items():
        files = [f'--json={tmp_path}/{kind}.json', f'--predictions={tmp_path}/{kind}.jsonl']
        run(*flags, *files, '--tasks=practice_add', '--limit=3', '--max_new_tokens=4', command='evaluate')
        tables[kind] = json.loads((tmp_path / f'{kind}.json').read_text())
        rows[kind] = [json.loads(line) for line in (tmp_path / f'{kind}.jsonl').read_text().splitlines()]
    assert tables['alone']['tasks'] == tables['over']['tasks']
    assert [row['prediction'] for row in rows['alone']] == [row['prediction'] for row in rows['over']]
    assert tables['over']['step'] == 3 and tables['over']['settings']['adapter']['checkpoint'] == paths[name]


def test_a_loaded_step_has_the_adapter_in_every_row(folders):
    base, paths = folders
    model, chosen = load_if_there(str(base), 3, paths['fr']), t5flan.load(base, adapters=paths)
    batch = {name: np.arange(3, 15, dtype=np.int32).reshape(3, 4) for name in FEATURES}
    np.testing.assert_allclose(model.logits(batch), chosen.logits(batch, adapter='fr'), atol=1e-5)
    assert model.adapters == () and not np.allclose(model.logits(batch), chosen.logits(batch), atol=1e-2)


@pytest.mark.parametrize('command', ['infer', 'evaluate'])
@pytest.mark.parametrize(
    ('flags', 'words'),
    [
        (['--adapters=de'], '--adapters=de, expected NAME=DIR'),
        (['--adapters=de=a,de=b'], '--adapters=de=b, expected NAME=DIR with names that differ'),
        (['--adapter=de'], '--adapter=de is not known: no --adapters are given'),
        (['--adapters=de=a', '--adapter=dee'], '--adapter=dee is not known: --adapters has de; did you mean de'),
    ],
)
def test_wrong_flags_are_one_line(folders, flags, words, command):
    rows = {'infer': '--prompt=a', 'evaluate': '--tasks=practice_add'}[command]
    with pytest.raises(UsageError, match=words) as error:
        run(f'--checkpoint={folders[0]}', rows, *flags, command=command)
    assert '\n' not in str(error.value)


def test_evaluate_needs_one_of_the_adapters():
    words = '--adapters has de, fr, of which every row has one. Set --adapter=NAME'
    with pytest.raises(UsageError, match=words):
        run('--checkpoint=nowhere', '--tasks=practice_add', '--adapters=de=a,fr=b', command='evaluate')


def test_an_unknown_adapter_of_a_row_is_refused_before_anything_is_loaded(folders, tmp_path):
    (tmp_path / 'rows.jsonl').write_text('{"inputs": "a"}\n{"inputs": "b", "adapter": "dee"}\n')
    given = [f'--input={tmp_path}/rows.jsonl', f'--output={tmp_path}/out.jsonl', '--adapters=de=nowhere']
    with pytest.raises(UserError, match=r"row 1 has adapter='dee'; --adapters has de; did you mean de\?") as error:
        run(f'--checkpoint={folders[0]}', *given)
    assert '\n' not in str(error.value) and not (tmp_path / 'out.jsonl').exists()


@pytest.mark.parametrize('case', ['whole model', 'other base', 'missing', 'of PEFT'])
def test_a_folder_that_does_not_fit_is_refused(folders, tmp_path, case):
    base, paths = folders
    folder, words = str(base), 'holds a whole model, expected an adapter of'
    if case == 'other base':
        other = save_folder(tmp_path / 'other', jax.tree.map(lambda x: x + 1, byte_model()), steps=(1,))
        folder = write_adapter(tmp_path / 'adapter', other, SETTINGS['de'])
        words = 'is an adapter of another base, .*other, not of .*base: their parameters differ'
    if case == 'missing':
        folder, words = (
            str(shutil.copytree(paths['de'], tmp_path / 'adapter')),
            'wi_1/lora_a is of shape .*, absent in .* Set the adapter of t5flan.json',
        )
        fields = json.loads((tmp_path / 'adapter' / 't5flan.json').read_text())
        fields['adapter']['settings'] = dataclasses.asdict(Lora(rank=2, targets=['.*/mlp/wi_0/kernel']))
        (tmp_path / 'adapter' / 't5flan.json').write_text(json.dumps(fields))
        for path in (tmp_path / 'adapter').rglob('checksums.json'):  # they would tell that the file has changed
            path.unlink()
    if case == 'of PEFT':
        folder, words = str(tmp_path / 'peft'), 'peft is an adapter in the format of PEFT, .* --from=peft --to=t5flan'
        convert.main(paths['de'], folder, 't5flan', 'peft')
    with pytest.raises(UserError, match=words) as error:
        t5flan.load(base, adapters={'x': folder})
    assert '\n' not in str(error.value)
