"""TyDiQA-GoldP: prompts, answers and their scores."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import find


def squad(language, count=2):
    qas = [
        {'id': f'{language}-{i}', 'question': f'Who {i}?', 'answers': [{'text': f'Ann {i}', 'answer_start': 0}] * 2}
        for i in range(count)
    ]
    return {'data': [{'title': 't', 'paragraphs': [{'context': 'Ann lives.', 'qas': qas}]}]}


@pytest.mark.parametrize('name', ['korean_tydiqa_dev.json', 'tydiqa-goldp-dev-korean.json'])
def test_without_training_data_the_first_question_is_the_exemplar(tmp_path, name):
    (tmp_path / name).write_text(json.dumps(squad('korean', 3)))
    benchmark = find('tydiqa')
    assert benchmark.tasks(str(tmp_path)) == ['korean']
    first, second = benchmark.questions(str(tmp_path), 'korean')
    assert first.prompt() == (
        'Passage: Ann lives.\nQuestion: Who 0?\nAnswer: Ann 0\n\nPassage: Ann lives.\nQuestion: Who 1?\nAnswer:'
    )
    assert first.target == ['Ann 1'] and (second.index, second.target) == (1, ['Ann 2'])


def test_the_exemplar_is_of_the_same_language(tmp_path):
    (tmp_path / 'korean_tydiqa_dev.json').write_text(json.dumps(squad('korean')))
    content = squad('arabic')
    content['data'] += squad('korean', 1)['data']
    content['data'][1]['paragraphs'][0]['context'] = 'Training.'
    (tmp_path / 'tydiqa-goldp-v1.1-train.json').write_text(json.dumps(content))
    questions = find('tydiqa').questions(str(tmp_path), 'korean')
    assert len(questions) == 2 and questions[0].prompt().startswith('Passage: Training.\nQuestion: Who 0?')


@pytest.mark.parametrize(
    ('completion', 'target', 'expected'),
    [
        (' The Wound care.\n\nPassage: more', ['wound care'], (1, 1, 0)),
        ('Wound care Question: Who?', ['Wound care', 'x'], (1, 1, 0)),
        ('군사령관', ['군사령관'], (1, 1, 0)),
        ('「東京」', ['東京'], (1, 1, 0)),
        ('big wound care', 'wound care', (0, 0.8, 0)),
        ('other', ['wound care'], (0, 0, 0)),
        ('', ['wound care'], (0, 0, 1)),
        ('\n\n', ['wound care'], (0, 0, 1)),
    ],
)
def test_answers(completion, target, expected):
    found = find('tydiqa').judge(Answer('korean', 0, (completion,), target))
    assert (found['exact_match'], pytest.approx(found['f1']), found['no_answer']) == expected


def test_the_reported_mean_is_without_english():
    answers = [Answer('english', 0, ('a',), ['a']), Answer('korean', 0, ('b',), ['c'])]
    found = score(find('tydiqa'), answers).averages
    assert (found['all']['exact_match'], found['8 languages']['exact_match']) == (50, 0)


def test_the_release_can_be_read(shared):
    benchmark, folder = find('tydiqa'), str(shared / 'data')
    sizes = {task: len(benchmark.questions(folder, task)) for task in benchmark.tasks(folder)}
    assert sizes == {'english': 439, 'korean': 275, 'swahili': 498}


def test_bad_files_are_reported_in_one_line(tmp_path):
    path = tmp_path / 'korean_tydiqa_dev.json'
    for text, message in (
        ('{}', 'is not SQuAD 1.1 JSON'),
        ('not JSON', 'is not SQuAD 1.1 JSON'),
        (json.dumps(squad('korean')).replace('"text": "Ann 0"', '"words": 1'), 'is not SQuAD 1.1 JSON'),
        ('{"data": []}', 'has no questions'),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            find('tydiqa').questions(str(tmp_path), 'korean')
    path.write_text(json.dumps(squad('korean')))
    (tmp_path / 'tydiqa-goldp-v1.1-train.json').write_text(json.dumps(squad('arabic')))
    with pytest.raises(UserError, match="has no question of the language 'korean'"):
        find('tydiqa').questions(str(tmp_path), 'korean')
    with pytest.raises(UserError, match='has no thai_tydiqa_dev.json'):
        find('tydiqa').questions(str(tmp_path), 'thai')
