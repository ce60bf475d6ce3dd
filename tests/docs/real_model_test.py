"""docs/tutorials/real_model.md: every command of the page, on the real model, with the results that it promises."""

import json

import pytest

from tests.docs.markdown import ROOT, blocks, commands, run

TEXT = (ROOT / 'docs' / 'tutorials' / 'real_model.md').read_text(encoding='utf-8')
COMMANDS = [line for line in commands(TEXT) if 'books/' not in line]  # the others need no file that the page lacks
PYTHON = [block.text for block in blocks(TEXT) if block.language == 'python']
pytestmark = pytest.mark.slow


def test_the_page(smollm2, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    monkeypatch.delenv('XLA_FLAGS')  # a user's commands run on one device, optimized
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'SmolLM2-135M').symlink_to(smollm2)
    names = {'__name__': 'page'}
    exec(PYTHON[0], names)
    printed = {line: run(line) for line in COMMANDS}
    by_start = lambda start: next(text for line, text in printed.items() if line.startswith(start))
    assert 'Paris' in by_start('t5flan infer --checkpoint=runs/smollm2')
    assert 'runs/smollm2/vocabulary (49,152 ids)' in by_start('t5flan mixture')
    assert 'Ghent' in by_start('t5flan infer --checkpoint=runs/cities')

    rows = [json.loads(line) for line in (tmp_path / 'runs/cities/metrics.jsonl').read_text().splitlines()]
    losses = [row['eval/loss'] for row in rows if 'eval/loss' in row]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.2 * losses[0]
    scores = [json.loads((tmp_path / name).read_text())['tasks']['file'] for name in ('before.json', 'after.json')]
    assert scores[0]['exact_match'] < 10 and scores[1]['exact_match'] > 90
    exec(PYTHON[1], names)
    grown = json.loads((tmp_path / 'runs/smollm2-ul2/t5flan.json').read_text())
    assert grown['vocabulary']['size'] == 49152 + 103 and grown['model']['vocab_size'] == 49280
