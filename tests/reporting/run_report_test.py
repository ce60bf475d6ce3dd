"""The page of a run, from the files that its folder has."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.reporting.run_report import curve, report, training_sections

METRICS = [{'step': step, 'loss': 10 / step, 'learning_rate': 0.1, 'grad_norm': 1.0} for step in range(1, 31)]
METRICS += [{'step': 30, 'eval/loss': 0.5, 'eval/accuracy': 0.7}]


def lines(rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)


def test_the_page_shows_everything_in_the_folder(tmp_path):
    (tmp_path / 'metrics.jsonl').write_text(lines(METRICS) + '{"step": 31, "lo')
    (tmp_path / 't5flan.json').write_text(json.dumps({'model': {'emb_dim': 64, 'mlp_activations': ['gelu', 'linear']}}))
    (tmp_path / 'config.gin').write_text('ModelConfig.emb_dim = 64  # <wide>\n')
    (tmp_path / 'evaluation.json').write_text(
        json.dumps(
            {
                'split': 'validation',
                'step': 30,
                'tasks': {'add': {'examples': 50, 'exact_match': 96.0}},
                'means': {'practice': {'exact_match': 96.0}},
            }
        )
    )
    rows = [
        {'task': f't{i % 3}', 'input': f'in {i}', 'target': 'x', 'prediction': 'x', 'correct': True} for i in range(40)
    ]
    (tmp_path / 'predictions.jsonl').write_text(lines(rows))
    page = report(str(tmp_path)).read_text(encoding='utf-8')
    for words in (
        'Training',
        'First, lowest, highest and last',
        '<td>add</td>',
        'mean of practice',
        '6 of 40 right answers of predictions.jsonl',
        'in 2',
        '# &lt;wide&gt;',
        '[&quot;gelu&quot;, &quot;linear&quot;]',
        f'{tmp_path}, step 30',
    ):
        assert words in page, words


@pytest.mark.parametrize('spoil', ['', '\x00', '[]', '{"tasks": {"a": {}}}', '{"model": 3, "tasks": 4}'])
def test_malformed_files_are_skipped(tmp_path, spoil):
    (tmp_path / 'metrics.jsonl').write_text(lines(METRICS[:1]))
    for name in ('t5flan.json', 'evaluation.json', 'predictions.jsonl', 'config.gin'):
        (tmp_path / name).write_text(spoil)
    assert '<h2>Training</h2>' in report(str(tmp_path), str(tmp_path / 'other' / 'r.html')).read_text()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(UserError, match='Give the workdir of a `t5flan train` run'):
            report(str(folder))


def test_curves_take_the_rows_that_have_the_metric():
    assert curve(METRICS, 'eval/loss') == ([30], [0.5])
    curves, table = training_sections(METRICS)
    assert [panel.title for panel in curves.panels] == ['Loss', 'Accuracy', 'Learning rate', 'Gradient norm']
    assert set(curves.panels[0].series) == {'train', 'held out'}
    assert table.rows[0] == ['loss', 10.0, 10 / 30, 10.0, 10 / 30]


def test_losses_of_tasks_share_a_panel():
    rows = [
        {
            'step': step,
            **{
                f'eval/{metric}/c4_ul2_{name}': value / step
                for name, value in (('r_3_15', 2.0), ('s', 3.0))
                for metric in ('loss', 'accuracy')
            },
        }
        for step in (10, 20)
    ]
    curves, table = training_sections(rows)
    assert [panel.title for panel in curves.panels] == ['Held-out loss by task', 'Held-out accuracy by task']
    assert dict(curves.panels[0].series) == {'r_3_15': ([10, 20], [0.2, 0.1]), 's': ([10, 20], [0.3, 0.15])}
    assert [row[0] for row in table.rows][0] == 'eval/loss/c4_ul2_r_3_15'


def test_the_page_begins_with_what_the_run_is(tmp_path):
    model = {'architecture': 'decoder_only', 'vocab_size': 384, 'emb_dim': 64, 'num_heads': 4, 'head_dim': 16}
    model |= {'mlp_dim': 128, 'num_decoder_layers': 2, 'position': 'rope'}
    description = {'model': model, 'format': 'causal_lm', 'vocabulary': {'size': 259}}
    rows = [{'step': 0, 'eval/loss': 3.5}, {'step': 10, 'tokens_per_second': 1234.5, 'peak_memory_gib': 2.25}]
    rows += [{'step': 10, 'eval/loss': 2.5}, {'step': 20, 'eval/loss': 2.75}]
    task = {'rate': 0.25, 'share': 0.2, 'examples': 1500, 'trimmed': 3, 'dropped': 0}
    (tmp_path / 't5flan.json').write_text(json.dumps(description))
    (tmp_path / 'metrics.jsonl').write_text(lines(rows))
    (tmp_path / 'data.json').write_text(json.dumps({'tasks': {'add': task, 'sort': {**task, 'examples': 9000}}}))
    (tmp_path / 'samples.jsonl').write_text(lines([{'task': 'add', 'input': '1+1', 'target': '2', 'prediction': '3'}]))
    page = report(str(tmp_path)).read_text(encoding='utf-8')
    words = ['131,392', '259 ids', '1,234.5 tokens/s', '2.2 GiB']
    words += ['first 3.5000 at step 0, best 2.5000 at step 10, last 2.7500 at step 20', '1 of 1 rows of samples.jsonl']
    for word in words:
        assert word in page, word
    assert page.index('<td>sort</td>') < page.index('<td>add</td>') and '>1,500</td>' in page
