"""t5flan/training/description.py: what a run takes from the checkpoint it starts from."""

import dataclasses
import json

import pytest

from t5flan.data.config import DataConfig
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.errors import UserError
from t5flan.training.description import streams_of_run, with_prompt_format
from tests.saved_model import byte_model, save_folder

VOCABULARY = ByteVocabulary()
CHAT = VOCABULARY.with_conventions(Conventions(chat_template='{{ messages }}'))
AUTO = InstructionConfig(prompt_format='auto')
DATA = DataConfig('x', 1, {'inputs': 8, 'targets': 8}, 'bytes', format='prefix_lm', instructions=AUTO)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp('run'), byte_model('palm'), format='prefix_lm', steps=(1,))


def format_of(workdir, data=DATA, vocabulary=VOCABULARY, source=None):
    return with_prompt_format(str(workdir), data, vocabulary, source and str(source)).instructions.prompt_format


def test_the_prompt_format_follows_the_checkpoint(tmp_path, folder):
    assert format_of(tmp_path) == 'plain', 'from scratch'
    assert format_of(tmp_path, source=folder) == 'newline', 'a converted decoder has no settings of a run'
    assert format_of(tmp_path, source=folder, vocabulary=CHAT) == 'chat'
    encoder_decoder = dataclasses.replace(DATA, format='encoder_decoder')
    assert format_of(tmp_path, encoder_decoder, CHAT, folder) == 'plain'
    given = dataclasses.replace(DATA, instructions=InstructionConfig(prompt_format='newline'))
    assert format_of(tmp_path, given, CHAT, folder) == 'newline'


@pytest.mark.parametrize(
    'recorded, expected', [({'instructions.prompt_format': 'chat'}, 'chat'), ({'seed': 0}, 'plain')]
)
def test_runs_of_t5flan_keep_theirs(tmp_path, folder, recorded, expected):
    description = json.loads((folder / 't5flan.json').read_text())
    (folder / 't5flan.json').write_text(json.dumps(description | {'data': recorded}))
    assert format_of(tmp_path, source=folder) == format_of(folder, vocabulary=CHAT) == expected
    (folder / 't5flan.json').write_text(json.dumps(description))


def test_the_streams_of_a_run_stay_with_another_batch_size(tmp_path, folder):
    description = json.loads((folder / 't5flan.json').read_text())
    (folder / 't5flan.json').write_text(json.dumps(description | {'data': {'streams': 4, 'batch_size': 32}}))
    assert streams_of_run(str(folder), dataclasses.replace(DATA, batch_size=16)).stream_count == 4
    assert streams_of_run(str(tmp_path), dataclasses.replace(DATA, batch_size=16)).stream_count == 2, 'a new run'
    with pytest.raises(UserError, match=r'batch_size=30 is not a multiple of 4, the streams of the run') as error:
        streams_of_run(str(folder), dataclasses.replace(DATA, batch_size=30))
    assert '\n' not in str(error.value)
    (folder / 't5flan.json').write_text(json.dumps(description))
