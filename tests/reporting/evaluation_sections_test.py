"""Evaluations on the page: tables by benchmark, category and checkpoint, curves, right and wrong answers."""

import json

from t5flan.reporting.evaluation_sections import MOST_CHARACTERS, evaluation_sections, sample_sections
from t5flan.reporting.page import Curves, Samples, Table, write_report


def write(path, value):
    path.write_text(json.dumps(value))


def tasks(step, value):
    return {
        'step': step,
        'tasks': {'add': {'examples': 9, 'exact_match': value}, 'sort': {'examples': 9, 'exact_match': 2 * value}},
        'means': {'all': {'exact_match': 1.5 * value}},
    }


def benchmark(step, value):
    one = {
        'metric': 'accuracy',
        'reported': 'all',
        'score': value,
        'tasks': {'navigate': {'examples': 3, 'accuracy': value}},
        'averages': {'all': {'tasks': 1, 'accuracy': value}, 'nlp': {'tasks': 1, 'accuracy': value + 1}},
        'samples': [
            {
                'task': 'navigate',
                'index': i,
                'prompt': f'Q: {step} {i}',
                'target': 'No',
                'prediction': text,
                'correct': ok,
            }
            for i, (text, ok) in enumerate([(' No', True), (' Yes', False)])
        ],
    }
    return {'step': step, 'benchmarks': {'bbh_direct': one}, 'normalized_average': value / 2}


def found(sections, kind):
    return {section.title: section for section in sections if isinstance(section, kind)}


def test_checkpoints_are_columns_and_curves(tmp_path):
    write(tmp_path / 'evaluation.json', {'split': 'test', 'steps': [tasks(100, 10.0), tasks(200, 20.0)]})
    sections = evaluation_sections(tmp_path)
    table = found(sections, Table)['Scores by checkpoint']
    assert table.columns == ['task', 'metric', 'step 100', 'step 200'] and 'split test' in table.caption
    assert table.rows == [
        ['add', 'exact_match', 10.0, 20.0],
        ['sort', 'exact_match', 20.0, 40.0],
        ['mean of all', 'exact_match', 15.0, 30.0],
    ]
    [panel] = found(sections, Curves)['Scores over checkpoints'].panels
    assert panel.title == 'exact_match' and panel.series['sort'] == ([100, 200], [20.0, 40.0])


def test_files_of_one_checkpoint_each_are_one_curve(tmp_path):
    for step in (300, 100):
        write(tmp_path / f'evaluation-{step}.json', {'split': 'test', **tasks(step, step / 10)})
    sections = evaluation_sections(tmp_path)
    assert [section.title for section in sections] == ['Scores', 'Scores', 'Scores over checkpoints']
    assert sections[-1].panels[0].series['mean of all'] == ([100, 300], [15.0, 45.0])
    (tmp_path / 'evaluation-300.json').unlink()
    assert not evaluation_sections(tmp_path)[-1].panels  # one point is no curve


def test_many_tasks_are_drawn_by_their_means(tmp_path):
    many = lambda step: {f't{i}': {'examples': 1, 'f1': 1.0 * step} for i in range(9)}
    steps = [{'step': step, 'tasks': many(step), 'means': {'all': {'f1': 1.0 * step}}} for step in (1, 2)]
    write(tmp_path / 'evaluation.json', {'steps': steps})
    [panel] = evaluation_sections(tmp_path)[-1].panels
    assert list(panel.series) == ['mean of all']


def test_benchmarks_by_category_task_and_checkpoint(tmp_path):
    write(tmp_path / 'evaluation_bbh.json', {'steps': [benchmark(1000, 30.0), benchmark(2000, 40.0)]})
    sections = evaluation_sections(tmp_path)
    tables = found(sections, Table)
    assert tables['Benchmarks'].columns[-2:] == ['step 1,000', 'step 2,000']
    assert tables['Benchmarks'].rows == [
        ['bbh_direct', 'accuracy', 'mean of all', 30.0, 40.0],
        ['all', 'normalized average', '', 15.0, 20.0],
    ]
    assert tables['bbh_direct by category'].rows == [['all', 30.0, 40.0], ['nlp', 31.0, 41.0]]
    assert tables['bbh_direct by task'].rows == [['navigate', 30.0, 40.0]]
    panels = {panel.title: panel for panel in found(sections, Curves)['Benchmarks over checkpoints'].panels}
    assert panels['bbh_direct by category'].series['nlp'] == ([1000, 2000], [31.0, 41.0])
    answers = found(sections, Samples)
    assert [one.input for one in answers['Right answers'].samples] == ['Q: 2000 0']
    assert answers['Wrong answers'].samples[0].predictions == {'model': ' Yes'}
    page = write_report(tmp_path / 'r.html', 'run', sections).read_text()
    assert 'Q: 2000 1' in page and '1 of 1 wrong answers of bbh_direct' in page


def test_right_and_wrong_answers_have_the_prompt_of_the_last_step(tmp_path):
    rows = [
        {'step': step, 'task': f't{i % 2}', 'prompt': f'{step} {i}', 'input': 'x', 'prediction': 'y', 'correct': i > 7}
        for step in (1, 2)
        for i in range(10)
    ]
    rows.append({**rows[-1], 'prompt': 'a' + 'b' * MOST_CHARACTERS})
    (tmp_path / 'predictions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    right, wrong = [one for one in sample_sections(tmp_path) if one.samples]
    assert (right.title, right.caption) == ('Right answers', '3 of 3 right answers of predictions.jsonl')
    assert [one.input for one in right.samples] == ['2 8', '2 9', '… ' + 'b' * MOST_CHARACTERS]
    assert wrong.caption == '6 of 8 wrong answers of predictions.jsonl'
    assert [one.label for one in wrong.samples[:3]] == ['t0', 't1', 't0']


def test_damaged_results_are_skipped(tmp_path):
    bad = [{'steps': 3}, {'steps': [4, {'step': 'x', 'tasks': {'a': {'f1': 1.0}}}]}, {'tasks': {'a': 3}}]
    bad += [{'step': 1, 'benchmarks': {'b': {}}}, {'step': 1, 'benchmarks': {'b': 3}}, {'step': 2, 'benchmarks': [1]}]
    for i, value in enumerate(bad):
        write(tmp_path / f'evaluation{i}.json', value)
    write_report(tmp_path / 'r.html', 'run', evaluation_sections(tmp_path))
