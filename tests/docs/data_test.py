"""docs/guides/data.md: every file of the page, with the settings beside it, gives the examples beside it."""

import pytest

from t5flan import configurables
from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.tasks import register_all
from tests.docs.markdown import ROOT, blocks

BLOCKS = blocks((ROOT / 'docs' / 'guides' / 'data.md').read_text(encoding='utf-8'))
EXAMPLES = {
    block.title.removeprefix('examples of '): block.text for block in BLOCKS if block.title.startswith('examples')
}
SETTINGS = {
    block.title.removeprefix('settings of '): block.text for block in BLOCKS if block.title.startswith('settings')
}
LENGTHS = {'inputs': 1000, 'targets': 1000}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with all files of the page."""
    folder = tmp_path_factory.mktemp('data')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv('XDG_CACHE_HOME', str(folder / 'cache'))
        for block in BLOCKS:
            if block.language == 'python' and not block.title:
                exec(compile(block.text, 'data.md', 'exec'), {'__name__': 'data'})
            elif block.title and ' of ' not in block.title:
                path = folder / block.title
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block.text, encoding='utf-8')
        yield folder


def settings_of(name):
    """The settings of the page, with those that every example shares."""
    given = SETTINGS[name]
    task = f'page_{name.partition(".")[0]}'
    if 'FileTask.' in given:  # all rows are training rows: the same file serves as validation
        train = given.partition("FileTask.train = '")[2].partition("'")[0]
        given += f"FileTask.name = '{task}'\nFileTask.validation = '{train}'\nDataConfig.file_tasks = [@FileTask()]\n"
        given += f"DataConfig.mixture = '{task}'\n"
    return given


@pytest.mark.parametrize('name', EXAMPLES)
def test_the_examples_are_those_of_the_page(folder, name, tmp_path):
    (tmp_path / 'page.gin').write_text(settings_of(name), encoding='utf-8')
    settings = configurables.parse([str(tmp_path / 'page.gin')])
    defaults = {'batch_size': 1, 'feature_lengths': LENGTHS, 'vocabulary': 'bytes', 'pack': False}
    settings.set_defaults(DataConfig, defaults, 'the page')
    data = settings.read(DataConfig)
    register_all(data)
    found = eval_examples(data, ByteVocabulary())
    parts = [(('input:  ', one.get('inputs_pretokenized')), ('target: ', one['targets_pretokenized'])) for one in found]
    lines = [label + text.replace('\n', '\\n') for pair in parts for label, text in pair if text is not None]
    assert '\n'.join(lines) + '\n' == EXAMPLES[name]


def test_every_file_has_settings_and_examples():
    assert set(EXAMPLES) == set(SETTINGS) and len(EXAMPLES) >= 5
