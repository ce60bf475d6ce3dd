"""docs/tutorials/lora_on_a_laptop.md: every command of the page, on the real model, with the promised results."""

import json

import pytest

from tests.docs.markdown import ROOT, blocks, commands, run

TEXT = (ROOT / 'docs' / 'tutorials' / 'lora_on_a_laptop.md').read_text(encoding='utf-8')
FILE, PEFT, MERGED = (block.text for block in blocks(TEXT) if block.language == 'python')
pytestmark = pytest.mark.slow


def test_the_page(smollm2, peft_library, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(ROOT), prepend=':')
    monkeypatch.delenv('XLA_FLAGS')  # a user's commands run on one device, optimized
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'SmolLM2-135M').symlink_to(smollm2)
    names = {'__name__': 'page'}
    exec(FILE, names)
    printed = {line: run(line) for line in commands(TEXT)}
    by_start = lambda start: next(text for line, text in printed.items() if line.startswith(start))
    assert 'Paris' in by_start('t5flan infer --checkpoint=runs/smollm2')
    assert '460,800 trained of 134,975,808 parameters' in by_start('t5flan train')
    for folder in ('runs/pirate', 'runs/received'):
        assert 'Arr, that be Bern, matey!' in by_start(f't5flan infer --checkpoint={folder}')

    rows = [json.loads(line) for line in (tmp_path / 'runs/pirate/metrics.jsonl').read_text().splitlines()]
    losses = [row['eval/loss'] for row in rows if 'eval/loss' in row]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1 * losses[0]
    scores = [json.loads((tmp_path / name).read_text())['tasks']['file'] for name in ('before.json', 'after.json')]
    assert scores[0]['exact_match'] == 0 and scores[1]['exact_match'] > 60
    assert (tmp_path / 'pirate-peft/adapter_model.safetensors').stat().st_size < 2e6
    exec(PEFT, names)
    exec(MERGED, names)
