"""`t5flan score`: metrics of completions made anywhere."""

import json

import pytest

from t5flan.__main__ import main
from t5flan.errors import UserError
from t5flan.evaluation.benchmark_scores import read_predictions
from t5flan.tasks.benchmarks import find

ROWS = [
    {'task': 'navigate', 'prediction': 'So the answer is Yes.', 'target': 'Yes'},
    {'task': 'navigate', 'prediction': 'So the answer is No.', 'target': 'Yes'},
    {'task': 'snarks', 'prediction': 'So the answer is (A).\n\nQ: So the answer is (B).', 'target': '(A)'},
]


@pytest.fixture
def written(tmp_path):
    def write(rows, name='rows.jsonl'):
        path = tmp_path / name
        path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
        return str(path)

    return write


def test_a_file_is_scored(written, tmp_path, capsys):
    out = tmp_path / 'scores.json'
    assert main(['score', '--benchmark=bbh_cot', f'--predictions={written(ROWS)}', f'--json={out}']) == 0
    found = json.loads(out.read_text())
    assert found['tasks']['navigate'] == {'examples': 2, 'accuracy': 50, 'flexible_accuracy': 50, 'no_answer': 0}
    assert found['averages']['all']['accuracy'] == found['score'] == 75 and found['reported'] == 'all'
    assert found['interval'][0] == 50 and found['interval'][1] == 100 and len(found['missing']) == 25
    shown = capsys.readouterr().out
    assert 'mean of all (2)' in shown and 'no predictions for 25 tasks: boolean_expressions,' in shown


def test_two_files_are_compared(written, tmp_path):
    other = [row | {'prediction': 'So the answer is Yes.'} for row in ROWS]
    out = tmp_path / 'scores.json'
    line = ['score', '--benchmark=bbh_cot', f'--predictions={written(ROWS)}']
    assert main([*line, f'--baseline={written(other, "other.jsonl")}', f'--json={out}']) == 0
    found = json.loads(out.read_text())['comparison']
    assert (found['questions'], found['wins'], found['losses'], found['difference']) == (3, 1, 1, 25)


def test_samples_of_a_question_vote(written):
    texts = ['So the answer is No.', 'So the answer is Yes.', 'hm', 'So the answer is Yes.']
    rows = [{'task': 'navigate', 'index': 7, 'prediction': text, 'target': 'Yes'} for text in texts]
    benchmark = find('bbh_cot')
    [answer] = read_predictions(written(rows), benchmark)
    assert answer.samples == tuple(texts) and answer.index == 7
    [listed] = read_predictions(written([rows[0] | {'prediction': texts}]), benchmark)
    assert listed == answer
    assert benchmark.judge(answer)['accuracy'] == 1


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        ({'task': 'navigat'}, r"no task 'navigat'; did you mean navigate\?"),
        ({'prediction': 3}, "field 'prediction' is int"),
        ({'prediction': []}, "field 'prediction' is list"),
        ({'target': None}, '"target" must be given'),
        ({'index': 'a'}, '"index" must be a number'),
    ],
)
def test_bad_rows_are_reported_in_one_line(written, row, message):
    with pytest.raises(UserError, match=message):
        read_predictions(written([ROWS[0] | row]), find('bbh_cot'))


def test_missing_fields_and_rows_are_reported(written):
    for field in ('task', 'prediction', 'target'):
        with pytest.raises(UserError, match=f"no field '{field}'.*Set --predictions"):
            read_predictions(
                written([{name: value for name, value in ROWS[0].items() if name != field}]), find('bbh_cot')
            )
    with pytest.raises(UserError, match='two targets'):
        read_predictions(written([ROWS[0] | {'index': 0}, ROWS[0] | {'index': 0, 'target': 'No'}]), find('bbh_cot'))
    assert main(['score', '--benchmark=bbh_cot', f'--predictions={written([])}']) == 1
    assert main(['score', '--benchmark=bbh_cot', '--predictions=absent.jsonl']) == 1
    assert main(['score', '--benchmark=bbh_cot']) == 2
