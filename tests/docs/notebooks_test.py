"""The notebooks: their saved outputs become pages, and running them again works."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, name_of
from tests.docs.reference_test import hook

NOTEBOOKS = sorted((ROOT / 'docs').rglob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_is_committed_with_its_outputs(path):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    text, pictures = hook('notebooks').to_markdown(notebook, path.stem)
    assert text.startswith('# ') and '```text\n' in text and len(pictures) == 1
    assert str(Path.home()) not in path.read_text(encoding='utf-8'), 'a path of the machine it ran on'


def test_a_cell_that_did_not_run_stops_the_build():
    to_markdown = hook('notebooks').to_markdown
    cell = {'cell_type': 'code', 'source': ['1 + 1'], 'execution_count': None, 'outputs': []}
    with pytest.raises(ValueError, match='was not executed'):
        to_markdown({'cells': [cell]}, 'page')
    failed = cell | {'execution_count': 1, 'outputs': [{'output_type': 'error', 'ename': 'NameError'}]}
    with pytest.raises(ValueError, match='NameError'):
        to_markdown({'cells': [failed]}, 'page')


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=name_of)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    """In an environment of its own: one CPU device, and the `t5flan` command of this Python."""
    nbclient = pytest.importorskip('nbclient', reason="notebooks need nbclient: pip install -e '.[docs]'")
    pytest.importorskip('ipykernel', reason="notebooks need ipykernel: pip install -e '.[docs]'")
    import nbformat

    command = tmp_path / 'bin' / 't5flan'
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m t5flan "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv('PATH', f'{command.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3').execute()
