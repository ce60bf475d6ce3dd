"""Stop strings of all benchmarks: generation ends early, and no completion scores differently for it."""

import random

import pytest

from t5flan.decoding.stopping import StopStrings
from t5flan.tasks.benchmarks import BENCHMARKS, find
from t5flan.tasks.benchmarks.grade_school_math import LANGUAGES

TASKS = {
    'bbh': ['navigate', 'word_sorting'],
    'mmlu': ['virology'],
    'tydiqa': ['english', 'korean'],
    'mgsm': list(LANGUAGES),
    'gsm8k': ['gsm8k'],
    'human_eval': ['human_eval'],
    'mbpp': ['mbpp'],
    'translation': ['deu-eng', 'eng-jpn'],
    'natural_instructions': ['task1'],
}
CASES = [(name, task) for name in BENCHMARKS for key, tasks in TASKS.items() if name.startswith(key) for task in tasks]
PIECES = [
    ' ', ' ', '\n', '\n\n', '.', ':', 'A', 'B', '(C)', 'Yes', '12', '3 + 4 = 7', '1,000.5', 'answer', 'word other',
    'The answer is', 'the answer is (A).', 'Answer:', 'A:', 'A. x\nB. y', 'Input', '####', '7万', 'Positive Example 10',
    'German', 'Question', '```', '[DONE', '\r', '\u2028', '\t',
]  # fmt: skip


def stops_of(name, task):
    return StopStrings(find(name).stop_strings(task), str)


@pytest.mark.parametrize(('name', 'task'), CASES)
def test_what_follows_a_stop_string_never_changes_the_answer(name, task):
    """On 2,000 texts made of triggers, labels, answers and white space, in random order."""
    benchmark, stops, draw = find(name), stops_of(name, task), random.Random(f'{name} {task}')
    if not stops.stop:
        assert name == 'human_eval'
        return
    rule = (lambda text: text.partition('[DONE]')[0]) if name == 'mbpp' else lambda text: benchmark.extract(text, task)
    triggers = LANGUAGES[task]['triggers'] if name == 'mgsm' else []
    pieces = [*PIECES, *triggers, *(one.strip() for one in stops.stop)]
    cut = answers = 0
    for _ in range(2000):
        words = draw.choices([*pieces, draw.choice(stops.stop)], k=draw.randint(1, 12))
        text = ''.join(words if draw.random() < 0.5 else [f'{word} ' for word in words])
        shorter = stops.cut(text)
        if shorter is not None:
            cut += 1
            answers += bool(rule(text))
            assert rule(shorter) == rule(text), repr(text)
    assert cut > 200 and answers > 20, 'too few texts have a stop string after an answer'


@pytest.mark.parametrize(
    ('name', 'task', 'completion', 'rest'),
    [
        ('bbh_direct', 'navigate', ' Yes', '\n\nQ: If you follow'),
        ('bbh_cot', 'navigate', ' We turn.\n\nSo the answer is No.', '\n\nQ: If you follow'),
        ('mmlu_direct', 'virology', ' B', ' Question: Which'),
        ('mmlu_cot', 'virology', ' It is red. The answer is (C).', '\n\nQ: Which'),
        ('tydiqa', 'english', ' in 1990', '\n\nPassage: The'),
        ('mgsm', 'de', ' Die Antwort ist 5.', '\n\nFrage: Wie'),
        ('mgsm', 'zh', ' 答案是 5。', '\n\n问题：小'),
        ('gsm8k', 'gsm8k', ' The answer is 5.', '\n\nQ: How'),
        ('mbpp', 'mbpp', 'def f():\n    return 1\n', '[DONE]\n\nYou are'),
        ('translation', 'deu-eng', ' Good day.', '\n\nGerman: Nein'),
        ('natural_instructions', 'task1', ' red', '\n\nPositive Example 3 -\nInput: x'),
    ],
)
def test_the_start_of_the_next_question_ends_an_answer(name, task, completion, rest):
    assert stops_of(name, task).cut(completion + rest).strip() == completion.strip()
    assert stops_of(name, task).cut(completion) is None
