"""docs/evaluation.md: its prompts are those that `evaluate --benchmark` asks, its settings those of the benchmarks."""

import re

import pytest

from t5flan.scoring.benchmark import after_space
from t5flan.tasks.benchmarks import BENCHMARKS, find
from tests.docs.markdown import ROOT, blocks

PAGE = (ROOT / 'docs' / 'evaluation.md').read_text(encoding='utf-8')
PROMPTS = {block.title: block.text for block in blocks(PAGE) if block.title}
WITHOUT_DATA = {'mmlu_cot': 'needs a file of the Flan repository', 'mmlu_likelihood': 'asks the prompts of mmlu_direct'}


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first column has this heading, without backquotes in the first cell."""
    lines = PAGE[PAGE.index(f'| {first} |') :].partition('\n\n')[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]
    return [[row[0].strip('`'), *row[1:]] for row in rows]


@pytest.mark.parametrize('title', PROMPTS)
def test_the_prompt_is_the_one_that_is_asked(title, shared):
    name, task, index = title.split()
    folder = str(shared / 'data')
    question = find(name).questions(folder, task, int(index) + 1)[int(index)]
    prompt = question.prompt().replace('\r\n', '\n') if name == 'mbpp' else question.prompt()
    assert PROMPTS[title] == prompt + '\n'


def test_the_question_of_mmlu_cot_is_worded_as_shown(tmp_path):
    row = 'What is the sign of the covenant for Jewish males?,The rainbow,Circumcision,A son,Bar mitzvah,B\n'
    (tmp_path / 'test').mkdir()
    (tmp_path / 'test' / 'world_religions_test.csv').write_text(row)
    (tmp_path / 'mmlu-cot.json').write_text('{"world_religions": "x\\n\\nQ: a\\nA: b"}')
    [question] = find('mmlu_cot').questions(str(tmp_path), 'world_religions')
    assert question.text + '\n' in [block.text for block in blocks(PAGE)]


def test_every_benchmark_has_a_prompt():
    assert {title.split()[0] for title in PROMPTS} | set(WITHOUT_DATA) == set(BENCHMARKS)


@pytest.mark.parametrize('row', table('`--benchmark`'), ids=lambda row: row[0])
def test_the_settings_are_those_of_the_benchmark(row):
    name, shots, tokens, stops, metric, _ = row
    benchmark = find(name)
    assert int(shots) == benchmark.shots and metric.strip('`') == benchmark.metric
    assert tokens == ('none' if name == 'mmlu_likelihood' else str(benchmark.max_new_tokens))
    task = {'mgsm': 'de', 'translation': 'deu-eng'}.get(name, 'x')
    labels = re.findall(r'`([^`]+)`', stops)
    if name not in ('mgsm', 'translation', 'natural_instructions', 'mmlu_likelihood', 'mbpp'):
        assert set(benchmark.stop_strings(task)) == set(after_space(*labels))
    assert name == 'mmlu_likelihood' or {one.strip() for one in benchmark.stop_strings(task)} >= set(labels) - {':'}


def test_the_settings_are_complete():
    assert [row[0] for row in table('`--benchmark`')] == list(BENCHMARKS)


def test_every_benchmark_has_a_result_inside_its_interval():
    rows = table('`--benchmark` | other arguments')
    assert [row[0] for row in rows] == [name for name in BENCHMARKS if name != 'mmlu_cot'], 'needs a file of Flan'
    for name, _, questions, score, interval, seconds in rows:
        low, high = map(float, interval.split(' to ') if interval else (score, score))
        assert low <= float(score) <= high and int(questions) > 0 and float(seconds) > 0, name
