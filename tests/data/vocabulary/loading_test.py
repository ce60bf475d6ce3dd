"""t5flan/data/vocabulary/loading.py: what a folder or setting names, without TensorFlow, one line for a bad one."""

import json
import subprocess
import sys

import pytest

from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError


def test_one_line_for_a_bad_vocabulary(trained, tmp_path):
    def fails(pattern, *arguments, **options):
        with pytest.raises(UserError, match=pattern) as error:
            load_vocabulary(*arguments, **options)
        assert '\n' not in str(error.value)

    fails(r'nothing\.model: No such file', tmp_path / 'nothing.model')
    fails(r'has no vocabulary\.json', tmp_path)
    trained.save(tmp_path)
    fails('mode_tokens', tmp_path, mode_tokens=('[A]',))
    described = json.loads((tmp_path / 'vocabulary.json').read_text())
    (tmp_path / 'vocabulary.json').write_text(json.dumps(described | {'vocab_size': 9}))
    fails('not one vocabulary', tmp_path)
    (tmp_path / 'vocabulary.json').write_text('{')
    fails('does not describe a vocabulary', tmp_path)


def test_loading_a_vocabulary_imports_no_tensorflow(trained, tmp_path):
    trained.save(tmp_path)
    program = (
        'import sys; from t5flan.data.vocabulary.loading import load_vocabulary; '
        f'load_vocabulary({str(tmp_path)!r}).encode("a"); '
        'assert not {"tensorflow", "seqio", "jax"} & set(sys.modules), "heavy"'
    )
    subprocess.run([sys.executable, '-c', program], check=True)
