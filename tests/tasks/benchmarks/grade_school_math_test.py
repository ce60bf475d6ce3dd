"""GSM8K and MGSM: prompts, and answers in all languages, whole and malformed."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import find
from t5flan.tasks.benchmarks.grade_school_math import LANGUAGES

# Sentences of the kind that models write, with the answer 70,000 in the language's own form.
OWN_FORM = {
    'bn': 'সে ৮০০০০ + ৫০০০০ খরচ করেছে। উত্তর হল ৭০,০০০।',
    'de': 'Der Gewinn ist 200.000 - 130.000. Die Antwort lautet 70.000.',
    'en': 'So the profit is 200,000 - 130,000. The answer is $70,000.',
    'es': 'La ganancia es 200.000 - 130.000. La respuesta es 70.000.',
    'fr': 'Le profit est 200 000 - 130 000. La réponse est 70\u202f000 $.',
    'ja': '利益は200000-130000です。答えは7万です。',
    'ru': 'Прибыль 200 000 - 130 000. Ответ — 70 000.',
    'sw': 'Faida ni 200,000 - 130,000. Jibu ni 70,000.',
    'te': 'లాభం 200,000 - 130,000. సమాధానం 70,000.',
    'th': 'กำไรคือ 200,000 - 130,000 คำตอบคือ ๗๐,๐๐๐',
    'zh': '利润是 200000 - 130000。答案是 7 万。',
}


@pytest.mark.parametrize('code', LANGUAGES)
def test_an_answer_in_every_language(code):
    benchmark, language = find('mgsm'), LANGUAGES[code]
    text = OWN_FORM[code]
    assert benchmark.extract(text, code) == '70000'
    again = f'{text}\n\n{language["question"]}5 + 6\n{language["answer"]} {language["triggers"][0]} 11.'
    assert benchmark.extract(again, code) == '70000', 'the next question was read'
    assert benchmark.extract(again.replace('\n', ' '), code) == '70000', 'with a vocabulary without newlines'
    assert benchmark.is_right('70000', '70,000', code) and not benchmark.is_right('7000', '70,000', code)
    assert benchmark.extract('', code) is None
    assert benchmark.extract(language['triggers'][0], code) is None
    assert benchmark.extract(f'3 + 4 = 7. {language["triggers"][0]}', code) == '7', 'cut off after the trigger'
    assert benchmark.extract('The answer is 12.', code) == '12', 'answered in English'


@pytest.mark.parametrize(
    ('text', 'answer'),
    [
        ('3 + 4 = 7. The answer is 7.', '7'),
        ('the answer is: 7', '7'),
        ('The answer is 5 + 6 = 11.', '11'),
        ('The answer is 11 apples, because 5 + 6 = 11 and 3 are left.', '11'),
        ('The answer is 3 hours and 20 minutes.', '3'),
        ('So 3. The answer is 4. Wait. The answer is 5.', '5'),
        ('She has 9 left.', '9'),
        ('#### 18', '18'),
        ('The answer is -5.', '-5'),
        ('The answer is $2.50. Q: How many? A: The answer is 9.', '2.5'),
        ('The answer is unknown. 12', '12'),
        ('The answer is seven.', None),
        ('Q: what', None),
    ],
)
def test_the_rule(text, answer):
    assert find('gsm8k').extract(text, 'gsm8k') == answer


def test_numbers_are_compared_by_value():
    answers = [Answer('gsm8k', 0, ('The answer is 18.00.',), '18'), Answer('gsm8k', 1, ('The answer is 1,8.',), '18')]
    assert score(find('gsm8k'), answers).tasks['gsm8k'] == {'examples': 2, 'accuracy': 50, 'no_answer': 0}


def exemplars(count=8):
    return {
        str(i): {'q': f'Frage: {i} + {i}?', 'a': f'Schritt-für-Schritt-Antwort: Das ist {2 * i}.'}
        for i in range(1, count + 1)
    }


@pytest.mark.parametrize('kind', ['json', 'py'])
def test_mgsm_prompts(tmp_path, kind):
    found = {'MGSM_EXEMPLARS': {'de': exemplars()}}
    text = (
        json.dumps(found) if kind == 'json' else f'"""Doc."""\nX = [1]\nMGSM_EXEMPLARS = {found["MGSM_EXEMPLARS"]!r}\n'
    )
    (tmp_path / f'exemplars.{kind}').write_text(text)
    (tmp_path / 'mgsm_de.tsv').write_text('Wie\u2028viel?\t2,125\nUnd?\t3\n')
    benchmark = find('mgsm')
    assert benchmark.tasks(str(tmp_path)) == ['de']
    first, second = benchmark.questions(str(tmp_path), 'de')
    assert first.target == '2125' and second.index == 1
    prompt = first.prompt()
    assert prompt.startswith('Frage: 1 + 1?\nSchritt-für-Schritt-Antwort: Das ist 2.\n\nFrage: 2 + 2?')
    assert prompt.endswith('\n\nFrage: Wie\u2028viel?\nSchritt-für-Schritt-Antwort:') and prompt.count('Frage') == 9


def test_gsm8k_prompts(tmp_path):
    row = {'question': 'How many?', 'answer': '1 + 1 = <<1+1=2>>2\n#### 1,002'}
    (tmp_path / 'test.jsonl').write_text(json.dumps(row) + '\n')
    [question] = find('gsm8k').questions(str(tmp_path), 'gsm8k')
    assert question.target == '1002' and question.prompt().endswith('The answer is 8.\n\nQ: How many?\nA:')
    assert len(question.exemplars) == 8 and question.prompt().startswith('Q: There are 15 trees in the grove.')
    (tmp_path / 'test.jsonl').write_text(json.dumps({'question': 'x', 'answer': '12'}) + '\n')
    assert find('gsm8k').questions(str(tmp_path), 'gsm8k')[0].target == '12'
    (tmp_path / 'test.jsonl').write_text(json.dumps({'question': 'x', 'answer': 'twelve'}) + '\n')
    with pytest.raises(UserError, match='does not end with "#### NUMBER"'):
        find('gsm8k').questions(str(tmp_path), 'gsm8k')


def test_the_answers_of_the_release_are_read_from_their_rationales(shared):
    folder = str(shared / 'data')
    benchmark = find('gsm8k')
    with open(f'{folder}/gsm8k/test.jsonl', encoding='utf-8') as file:
        rationales = [json.loads(line)['answer'] for line in file]
    questions = benchmark.questions(folder, 'gsm8k')
    assert len(questions) == 1319
    assert all(benchmark.extract(text, 'gsm8k') == one.target for one, text in zip(questions, rationales, strict=True))
    with open(f'{folder}/mgsm/exemplars.json', encoding='utf-8') as file:
        known = json.load(file)
    for code, shown in known['MGSM_EXEMPLARS'].items():
        for number, answer in enumerate(known['EXEMPLAR_NUMBER_ANSWERS'], 1):
            assert find('mgsm').extract(shown[str(number)]['a'], code) == str(answer), code


def test_bad_files_are_reported_in_one_line(tmp_path):
    def message(text=None, **files):
        for name, content in files.items():
            (tmp_path / name.replace('__', '.')).write_text(content)
        with pytest.raises(UserError) as error:
            find('mgsm').questions(str(tmp_path), 'de')
        return str(error.value)

    assert 'has no mgsm_de.tsv' in message()
    assert 'exemplars of MGSM' in message(mgsm_de__tsv='x\t1\n')
    assert "no MGSM_EXEMPLARS of the language 'de'" in message(exemplars__json='{"MGSM_EXEMPLARS": {}}')
    assert 'has 3 exemplars' in message(exemplars__json=json.dumps({'MGSM_EXEMPLARS': {'de': exemplars(3)}}))
    good = json.dumps({'MGSM_EXEMPLARS': {'de': exemplars()}})
    assert 'line 2: expected a question, a tab and a number' in message(
        exemplars__json=good, mgsm_de__tsv='x\t1\nno tab\n'
    )
    assert 'is empty' in message(mgsm_de__tsv='\n')
