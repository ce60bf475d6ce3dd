"""t5flan/config/: every rule for reading gin, and a one-line error for every wrong name or value."""

import dataclasses
import json
import subprocess
import sys

import pytest

from t5flan import configurables
from t5flan.config import gin_files
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask
from t5flan.data.instruction_config import InstructionConfig
from t5flan.errors import UsageError, UserError
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training.config import CheckpointConfig, OptimizerConfig, RunConfig

RUN = """
STEPS = %gin.REQUIRED
BATCH_SIZE = 8
RunConfig.steps = %STEPS
RunConfig.log_every = %LOG_EVERY
LOG_EVERY = 5
DataConfig:
  mixture = %MIXTURE
  batch_size = %BATCH_SIZE
  feature_lengths = {'inputs': %INPUTS, 'targets': 8}
  vocabulary = 'bytes'
INPUTS = 16
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a gin file into the current folder and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = 'run.gin') -> str:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        return name

    return write


def error_of(call, kind=UsageError) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_reads_files_then_bindings(write):
    settings = configurables.parse([write(RUN)], ['STEPS=100', 'MIXTURE=practice', 'BATCH_SIZE=64', 'RunConfig.seed=3'])
    assert settings.read(RunConfig) == RunConfig(steps=100, seed=3, log_every=5)
    assert settings.read(DataConfig) == DataConfig(
        mixture='practice', batch_size=64, feature_lengths={'inputs': 16, 'targets': 8}, vocabulary='bytes'
    )
    assert settings.binds(DataConfig) and settings.binds(RunConfig, 'seed') and not settings.binds(ModelConfig)


def test_a_later_file_wins(write):
    first, second = write('RunConfig.steps = 1\nRunConfig.seed = 1\n'), write('RunConfig.steps = 2\n', 'second.gin')
    assert configurables.parse([first, second]).read(RunConfig) == RunConfig(steps=2, seed=1)


@pytest.mark.parametrize(
    'binding, value',
    [
        ('DataConfig.mixture=007', '007'),  # a str stays as typed
        ('DataConfig.mixture=True', 'True'),
        ('DataConfig.mixture=gs://bucket/a b#c/*.jsonl', 'gs://bucket/a b#c/*.jsonl'),
        ("DataConfig.mixture='quoted'", 'quoted'),
        ('DataConfig.mixture="quoted"', 'quoted'),
        ("DataConfig.mixture=it's", "it's"),
        ('DataConfig.mixture=a=b', 'a=b'),
        ('DataConfig.mixture=%STEPS', '5'),
        ('STEPS=%MIXTURE', None),
        ('DataConfig.batch_size=4', 4),
        ('DataConfig.pack=False', False),
        ("DataConfig.feature_lengths={'inputs': 3, 'targets': %STEPS}", {'inputs': 3, 'targets': 5}),
        ("DataConfig.modules=['my.tasks', 'a#b']", ('my.tasks', 'a#b')),
        ('DataConfig.streams=None', None),
        ('DataConfig.streams=2', 2),
        ('CheckpointConfig.initialize_from=None', None),
        ('CheckpointConfig.initialize_from=/a path/7', '/a path/7'),
        ('CheckpointConfig.initialize_from=3', '3'),
        ('OptimizerConfig.learning_rate=1e-3', 1e-3),
        ('OptimizerConfig.learning_rate=1', 1.0),
        ('OptimizerConfig.clip_by_global_norm=2', 2.0),
        ("OptimizerConfig.freeze=['encoder/.*']", ('encoder/.*',)),
        ("MeshConfig.rules=[('embed', None)]", (('embed', None),)),
    ],
)
def test_bare_words_are_read_as_the_field_requires(binding, value):
    base = [
        'STEPS=5',
        'RunConfig.steps=%STEPS',
        'DataConfig.mixture=m',
        'DataConfig.batch_size=2',
        'DataConfig.vocabulary=bytes',
        "DataConfig.feature_lengths={'inputs': 1, 'targets': 1}",
    ]
    if binding == 'STEPS=%MIXTURE':
        settings = configurables.parse([], [*base, 'MIXTURE=9', 'STEPS=%MIXTURE'])
        assert settings.read(RunConfig).steps == 9
        return
    settings = configurables.parse([], [*base, binding])
    name, field = binding.partition('=')[0].split('.')
    given = getattr(settings.read(configurables.CONFIGURABLES[name]), field)
    assert given == value and type(given) is type(value)


def test_one_macro_sets_a_str_and_an_int(write):
    name = write('RunConfig.steps = %N\nCheckpointConfig.initialize_from = %N\n')
    settings = configurables.parse([name], ['N=7'])
    assert settings.read(RunConfig).steps == 7 and settings.read(CheckpointConfig).initialize_from == '7'


def test_scopes_give_several_objects_of_one_class(write):
    name = write("""
        DataConfig.mixture = 'file_tasks'
        DataConfig.batch_size = 2
        DataConfig.vocabulary = 'bytes'
        DataConfig.feature_lengths = {'inputs': 4, 'targets': 4}
        DataConfig.file_tasks = [@a/FileTask(), @b/FileTask()]
        FileTask.input_field = 'question'
        a/FileTask.name = 'a'
        a/FileTask.train = %TRAIN
        b/FileTask.name = 'b'
        b/FileTask.train = 'b.tsv'
        b/FileTask.input_field = 'text'
    """)
    tasks = configurables.parse([name], ['TRAIN=a.jsonl']).read(DataConfig).file_tasks
    assert tasks == (FileTask('a', 'a.jsonl', input_field='question'), FileTask('b', 'b.tsv', input_field='text'))


def test_nested_settings_are_read_from_their_own_bindings(write, tmp_path):
    base = [
        'DataConfig.mixture=m',
        'DataConfig.batch_size=2',
        'DataConfig.vocabulary=bytes',
        "DataConfig.feature_lengths={'inputs': 1, 'targets': 1}",
    ]
    settings = configurables.parse([], [*base, 'InstructionConfig.few_shot=0', 'InstructionConfig.triggers=["Why?"]'])
    data = settings.read(DataConfig)
    assert data.instructions == InstructionConfig(few_shot=0.0, triggers=('Why?',))
    again = configurables.parse([write(settings.operative_config(), 'again.gin')])
    assert (
        again.read(DataConfig) == data
        and 'DataConfig.instructions = @InstructionConfig()' in settings.operative_config()
    )
    scoped = configurables.parse(
        [], [*base, 'DataConfig.instructions=@plain/InstructionConfig()', 'plain/InstructionConfig.options=1']
    )
    assert scoped.read(DataConfig).instructions.options == 1.0


@pytest.mark.parametrize(
    'given, paths', [('a.json', ('a.json',)), ("['a.json', 'b']", ('a.json', 'b')), ('None', ()), ('[]', ())]
)
def test_one_path_or_a_list_of_paths(given, paths):
    settings = configurables.parse(
        [],
        [
            f'CHAT_FILES={given}',
            'DataConfig.chat=%CHAT_FILES',
            'DataConfig.mixture=m',
            'DataConfig.batch_size=2',
            'DataConfig.vocabulary=bytes',
            "DataConfig.feature_lengths={'inputs': 1, 'targets': 1}",
        ],
    )
    assert settings.read(DataConfig).chat == paths


# -- Files ----------------------------------------------------------------------------------------------------------


def test_finds_files_here_and_in_the_package(write, monkeypatch, tmp_path):
    packaged = tmp_path / 'packaged'
    write('RunConfig.seed = 7\n', 'packaged/base.gin')
    write('RunConfig.seed = 8\n', 'packaged/models/tiny.gin')
    monkeypatch.setattr(gin_files, 'GIN_ROOT', packaged)
    write("include 'base'\ninclude 'models/tiny.gin'\nRunConfig.steps = 1\n", 'mine.gin')
    for name in ('mine', 'mine.gin', str(tmp_path / 'mine.gin'), str(tmp_path / 'mine')):
        assert configurables.parse([name]).read(RunConfig).seed == 8
    write('RunConfig.seed = 9\n', 'base.gin')  # a file in the current folder comes before a packaged one
    assert configurables.parse(['base'], ['RunConfig.steps=1']).read(RunConfig).seed == 9


@pytest.mark.parametrize(
    'text, expected',
    [
        ('A = 3\nB 4\n', "run.gin:2: not gin: Couldn't parse statement"),
        ('A = 3\nB = foo\n', 'run.gin:2: not gin: foo is not a value, expected a number'),
        ('A = [3,\n', 'run.gin:1: not gin: '),
        ("A = 'open\n", 'run.gin:1: not gin: '),
        ('import os\n', 'run.gin:1: gin imports are not supported'),
        ("include 'absent'\n", 'run.gin:1: there is no gin file absent'),
        ("include 'run'\n", 'includes itself'),
        ('\nRunConfig.step = 3\n', 'run.gin:2: there is no setting RunConfig.step: did you mean RunConfig.steps?'),
        ('RunConfg.steps = 3\n', 'run.gin:1: there is no setting RunConfg.steps: did you mean RunConfig.steps?'),
        ('DataConfig.file_tasks = [@FileTsk()]\n', 'run.gin:1: there is no @FileTsk: did you mean @FileTask()?'),
        ('DataConfig.file_tasks = [@FileTask]\n', 'run.gin:1: write @FileTask() with parentheses'),
    ],
)
def test_an_error_in_a_file_is_one_line_with_its_place(write, text, expected):
    assert expected in error_of(lambda: configurables.parse([write(text)]))


def test_a_missing_file_suggests_the_nearest(write):
    write('', 'finetune_mine.gin')
    assert 'did you mean finetune_mine.gin?' in error_of(lambda: configurables.parse(['finetune_mien']))


def test_a_file_that_is_not_text(write, tmp_path):
    (tmp_path / 'x.gin').write_bytes(b'\xff\xfe\x00')
    assert error_of(lambda: configurables.parse(['x.gin'])) == 'x.gin cannot be read: it is not UTF-8 text'


# -- Names and values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'binding, expected',
    [
        ('STEP=3', 'there is no setting STEP: did you mean STEPS?; no value in run.gin uses it'),
        ('batch_size=3', 'did you mean BATCH_SIZE?'),
        ('ModelConfig.embdim=3', 'there is no setting ModelConfig.embdim: did you mean ModelConfig.emb_dim?'),
        ('Modelconfig.emb_dim=3', 'did you mean ModelConfig.emb_dim?'),
        ('emb_dim=3', 'did you mean ModelConfig.emb_dim?'),
        ('STEPS', '--gin.STEPS has no value: write --gin.STEPS=VALUE'),
        ('A B=3', '--gin.A B is not a setting'),
    ],
)
def test_an_unknown_name_suggests_the_nearest(write, binding, expected):
    assert expected in error_of(lambda: configurables.parse([write(RUN)], [binding]))


def test_an_unused_macro_is_an_error(write):
    name = write('UNUSED = 3\n')
    assert 'there is no setting UNUSED' in error_of(lambda: configurables.parse([name], ['UNUSED=4']))
    assert 'no --gin_file was given' in error_of(lambda: configurables.parse([], ['STEPS=4']))


@pytest.mark.parametrize(
    'binding, expected',
    [
        ('RunConfig.steps=many', "RunConfig.steps is given 'many' (str), expected int (from --gin.RunConfig.steps)"),
        ('RunConfig.steps=1.5', 'is given 1.5 (float), expected int'),
        ('RunConfig.steps=True', 'is given True (bool), expected int'),
        ('RunConfig.steps=None', 'is given None, expected int'),
        ('STEPS=many', "RunConfig.steps is given 'many' (str), expected int (from STEPS, --gin.STEPS)"),
        ('OptimizerConfig.learning_rate=fast', 'expected float'),
        ('OptimizerConfig.decay_steps=1.5', 'expected int or None'),
        ('OptimizerConfig.freeze=encoder', 'expected list of str'),
        ('OptimizerConfig.freeze=[1]', 'expected list of str'),
        ('OptimizerConfig.factored=yes', 'expected True or False'),
        ('DataConfig.feature_lengths=[1]', 'expected dict of str to int'),
        ("DataConfig.feature_lengths={'inputs': 1.5}", 'expected dict of str to int'),
        ('DataConfig.file_tasks=[1]', 'expected list of @FileTask()'),
        ('CheckpointConfig.initialize_from=@FileTask()', 'expected str or None'),
    ],
)
def test_a_type_error_reports_the_value_and_the_expected_type(write, binding, expected):
    key = binding.partition('=')[0]
    name = key.partition('.')[0] if '.' in key else 'RunConfig'
    settings = configurables.parse([write(RUN)], ['MIXTURE=m', 'FileTask.name=f', 'FileTask.train=f', binding])
    assert expected in error_of(lambda: settings.read(configurables.CONFIGURABLES[name]))


def test_a_missing_setting_names_itself_and_the_flag(write):
    assert error_of(lambda: configurables.parse([write(RUN)]).read(RunConfig, 'train')) == (
        "RunConfig.steps (taken from STEPS in run.gin:4) is required by 'train' and not given: set --gin.STEPS=N"
    )
    assert error_of(lambda: configurables.parse().read(RunConfig, 'train')) == (
        "RunConfig.steps is required by 'train' and not given: set --gin.RunConfig.steps=N"
    )


def test_all_missing_settings_are_reported_at_once(write):
    message = error_of(lambda: configurables.parse([write(RUN)]).read_all([RunConfig, DataConfig], 'train'))
    assert message.endswith('set --gin.STEPS=N --gin.MIXTURE=NAME')
    assert 'RunConfig.steps' in message and 'DataConfig.mixture' in message


def test_an_undefined_macro_suggests_the_nearest(write):
    name = write('RunConfig.steps = %STEP\nSTEPS = 3\n')
    assert '(taken from STEP in run.gin:1; did you mean STEPS?)' in error_of(
        lambda: configurables.parse([name]).read(RunConfig)
    )


def test_a_macro_defined_by_itself(write):
    name = write('A = %B\nB = [%A]\nOptimizerConfig.freeze = %A\n')
    assert 'A is defined by itself' in error_of(lambda: configurables.parse([name]).read(OptimizerConfig))


def test_an_error_of_a_dataclass_is_passed_on():
    message = error_of(lambda: configurables.parse([], ['MeshConfig.data=0']).read(MeshConfig), UserError)
    with pytest.raises(UserError) as direct:
        MeshConfig(data=0)
    assert message == str(direct.value)


# -- The operative configuration ------------------------------------------------------------------------------------


def test_operative_config_reads_back_and_keeps_macros(write):
    given = [
        'STEPS=100',
        'MIXTURE=007',
        'FileTask.train=a b.jsonl',
        'FileTask.name=mine',
        'DataConfig.file_tasks=[@FileTask()]',
        'OptimizerConfig.learning_rate=1e-4',
        "MeshConfig.rules=[('embed', None)]",
    ]
    settings = configurables.parse([write(RUN)], given)
    kinds = [RunConfig, DataConfig, OptimizerConfig, MeshConfig]
    before = settings.read_all(kinds)
    text = settings.operative_config()
    again = configurables.parse([write(text, 'again.gin')])
    assert again.read_all(kinds) == before
    assert again.operative_config() == text
    assert 'RunConfig.steps = %STEPS' in text and "MIXTURE = '007'" in text and 'ModelConfig' not in text
    more = configurables.parse(['again.gin'], ['STEPS=200', 'INPUTS=4'])
    assert more.read(RunConfig).steps == 200 and more.read(DataConfig).feature_lengths['inputs'] == 4


def test_every_settings_class_is_known():
    assert {'ModelConfig', 'DataConfig', 'FileTask', 'OptimizerConfig', 'RunConfig'} <= set(configurables.CONFIGURABLES)
    for kind in configurables.CONFIGURABLES.values():
        assert kind.__dataclass_params__.frozen, f'{kind.__name__} must be frozen'
        for field in dataclasses.fields(kind):
            assert field.type is not None


def test_reading_settings_imports_nothing_heavy():
    code = (
        "import sys; from t5flan import configurables; settings = configurables.parse([], ['RunConfig.steps=1']);"
        "settings.read(configurables.CONFIGURABLES['RunConfig']);"
        "print([m for m in ('jax', 'flax', 'tensorflow', 'seqio', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'


# -- A run that starts from a checkpoint folder ---------------------------------------------------------------------


def test_a_checkpoint_folder_sets_what_gin_does_not(write, tmp_path):
    shape = {
        'architecture': 'decoder_only',
        'vocab_size': 384,
        'emb_dim': 8,
        'num_heads': 2,
        'head_dim': 4,
        'mlp_dim': 8,
        'num_decoder_layers': 1,
        'position': 'rope',
        'dropout_rate': 0.3,
    }
    write(
        json.dumps({'model': shape, 'format': 'causal_lm', 'feature_lengths': {}, 'vocabulary': {}}), 'old/t5flan.json'
    )
    name = write("""
        ModelConfig.dropout_rate = 0.1
        DataConfig.mixture = 'm'
        DataConfig.batch_size = 2
        DataConfig.feature_lengths = {'targets': 4}
        DataConfig.vocabulary = %VOCABULARY
    """)
    for folder in ('old', 'old/checkpoints/100'):
        origin, found = configurables.checkpoint_settings(folder)
        assert origin == 'old/t5flan.json'
        settings = configurables.parse([name])
        assert not settings.can_read(ModelConfig) and not settings.can_read(DataConfig)
        for kind, fields in found.items():
            settings.set_defaults(kind, fields, origin)
        assert settings.read(ModelConfig) == ModelConfig(**shape | {'dropout_rate': 0.1})
        assert (
            settings.read(DataConfig).vocabulary == 'old/vocabulary' and settings.read(DataConfig).format == 'causal_lm'
        )
    assert configurables.checkpoint_settings(str(tmp_path)) is None
    write('{"model": 3}', 'broken/t5flan.json')
    assert 'broken/t5flan.json is not the description' in error_of(
        lambda: configurables.checkpoint_settings('broken'), UserError
    )


def test_a_recipe_replaces_only_what_one_file_gave(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'base.gin').write_text('RATE = 0.1\nDROPOUT = 0.2\nSEED = 3\nModelConfig.dropout_rate = %DROPOUT\n')
    (tmp_path / 'mine.gin').write_text("include 'base.gin'\nRATE = 0.3\n")
    (tmp_path / 'recipe.gin').write_text('RATE = 0.4\nSEED = 5\nOTHER = 6\n')
    settings = configurables.parse(
        ['mine.gin'], ['RunConfig.seed=%SEED', 'OptimizerConfig.learning_rate=%RATE', 'RunConfig.steps=1']
    )
    settings.read(OptimizerConfig)  # what was read before is read again
    settings.use_recipe('recipe', instead_of='base', values={'DROPOUT': 0.5})
    assert settings.read(OptimizerConfig).learning_rate == 0.3, "the user's own file wins"
    assert settings.read(RunConfig).seed == 5
    text = settings.operative_config()
    assert 'SEED = 5' in text and 'RATE = 0.3' in text and 'OTHER' not in text


# -- What nothing reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'line, message',
    [
        ('LERNING_RATE = 0.5', 'mine.gin:2: no value uses LERNING_RATE: did you mean LEARNING_RATE?'),
        ('c/FileTask.rate = 2.0', 'mine.gin:2: c/FileTask.rate is not read: no value uses @c/FileTask()'),
        ('Lora.rank = 4', 'Lora.rank is not read: no value uses @Lora(). Add it to RunConfig.adapter.'),
        ('TextFiles.name = 4', 'no value uses @TextFiles(). Add it to DataConfig.text_files.'),
        ('DataConfig.file_tasks = [@news/FileTask()]\nnew/FileTask.rate = 2.0', 'did you mean news/FileTask.rate?'),
    ],
)
def test_what_nothing_reads_is_refused_with_the_nearest_name(write, line, message):
    name = write(f"include 'runs/finetune_file.gin'\n{line}\n", 'mine.gin')
    assert message in error_of(lambda: configurables.parse([name]).read(OptimizerConfig))


def test_what_another_file_replaces_may_be_unread(write):
    name = write("""
        include 'runs/finetune_file.gin'
        b/FileTask.rate = 2.0
        DataConfig.file_tasks = [@b/FileTask()]
        DataConfig.file_tasks = []
        OptimizerConfig.learning_rate = 0.5
    """)
    assert configurables.parse([name]).read(OptimizerConfig).learning_rate == 0.5


@pytest.mark.parametrize(
    'given, message',
    [
        (['RunConfig.adapter=@RunConfig()', 'RunConfig.steps=1'], '@RunConfig() contains itself'),
        (
            ['RunConfig.adapter=@EvaluationConfig()', 'EvaluationConfig.tasks=[@RunConfig()]', 'RunConfig.steps=1'],
            '@EvaluationConfig() contains itself: @EvaluationConfig() in @RunConfig() in @EvaluationConfig()',
        ),
        (['OptimizerConfig.freeze=[@LossConfig()]', 'RunConfig.adapter={@LossConfig(): 1}'], 'is the key of a dict'),
    ],
)
def test_references_that_cannot_be_read(given, message):
    assert message in error_of(lambda: configurables.parse([], given).read(RunConfig))
