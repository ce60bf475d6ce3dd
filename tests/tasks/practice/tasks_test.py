"""tasks/practice/tasks.py: disjoint splits, wordings, lengths, registration; answers are checked by theme."""

import hashlib
import json
import os
import re
import string
import subprocess
import sys
import time

import pytest

from t5flan.tasks.practice import tasks as practice
from t5flan.tasks.practice.instance import SPLITS, is_held_out

ALL = practice.task_names(trained=None)
# Words, single digits and punctuation marks: about the pieces of a small SentencePiece vocabulary with split digits.
TOKEN = re.compile(r'\d|[^\W\d]+|[^\w\s]')


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:'[a-z]+)?", text)


def texts_of(wording) -> list[str]:
    return [wording] if isinstance(wording, str) else list(wording.values())


def test_counts():
    assert len(practice.task_names(cot=False)) >= 24
    assert len([name for name in ALL if name.endswith('_cot')]) >= 6
    assert len(practice.task_names(trained=False, cot=False)) >= 4
    by_group = [name for group in practice.groups() for name in practice.task_names(group, trained=None)]
    assert sorted(by_group) == sorted(ALL)


@pytest.mark.parametrize('task', ALL)
def test_train_and_held_out_instances_are_disjoint(task):
    examples = {split: [practice.make_example(task, split, i) for i in range(400)] for split in SPLITS}
    keys = {split: {example['instance'] for example in rows} for split, rows in examples.items()}
    assert not keys['train'] & (keys['validation'] | keys['test_wordings'])
    inputs = {split: {example['inputs'] for example in rows} for split, rows in examples.items()}
    assert not inputs['train'] & (inputs['validation'] | inputs['test_wordings'])
    name = task_skill(task).name
    seen, unseen = set(practice.wordings(name)), set(practice.wordings(name, held_out=True))
    for split, numbers in (('train', seen), ('validation', seen), ('test_wordings', unseen)):
        assert {example['wording'].partition('/')[2] for example in examples[split]} == numbers


def task_skill(task: str):
    return practice.skill_of(task)[0]


@pytest.mark.parametrize('name', practice.SKILLS)
def test_enough_distinct_training_examples(name):
    skill = practice.SKILLS[name]
    drawn = [practice.make_example(practice.PREFIX + name, 'train', i) for i in range(6000)]
    least = 1000 if skill.space is None else min(1000, 2 * skill.space)
    assert len({example['inputs'] for example in drawn}) >= least
    keys = {example['instance'] for example in drawn}
    if skill.space is None:
        assert len(keys) >= 800
    else:  # the whole space except what is held out
        assert 0.75 * skill.space <= len(keys) <= skill.space


@pytest.mark.parametrize('name', practice.SKILLS)
def test_wordings(name):
    seen, unseen = practice.wordings(name), practice.wordings(name, held_out=True)
    assert len(seen) >= 4 and len(unseen) >= 2 and not set(seen) & set(unseen)
    texts = [text for wording in [*seen.values(), *unseen.values()] for text in texts_of(wording)]
    assert len(set(texts)) == len(texts)
    skill = practice.SKILLS[name]
    for i in range(40):
        instance, _ = practice.draw(skill, 'train', i)
        for wording in [*seen.values(), *unseen.values()]:
            text = wording if isinstance(wording, str) else wording[instance.variant]
            fields = {field for _, field, _, _ in string.Formatter().parse(text) if field}
            assert fields <= set(instance.fields), text
            if isinstance(wording, str):
                assert not instance.variant or len(fields) > 0


def test_every_wording_belongs_to_a_skill():
    templates = json.loads(practice.TEMPLATES.read_text(encoding='utf-8'))
    assert set(templates['skills']) | set(templates['same_wordings']) == set(practice.SKILLS)
    assert not set(templates['skills']) & set(templates['same_wordings'])


def test_held_out_wordings_are_made_of_seen_words():
    """Held-out wordings, and those of held-out tasks, must be understandable from training."""
    shown = set()
    for task in practice.task_names():
        for i in range(200):
            example = practice.make_example(task, 'train', i)
            shown |= {word.lower() for word in words(example['inputs'])}
    for name in practice.SKILLS:
        for held_out in (False, True):
            for wording in practice.wordings(name, held_out).values():
                for text in texts_of(wording):
                    fixed = ' '.join(part for part, *_ in string.Formatter().parse(text))
                    assert not {word.lower() for word in words(fixed)} - shown, (name, text)
    for trigger in practice.triggers(held_out=True):
        assert not {word.lower() for word in words(trigger)} - shown
    assert len(practice.triggers()) >= 3 and not set(practice.triggers()) & set(practice.triggers(held_out=True))


@pytest.mark.parametrize('task', ALL)
def test_lengths_and_form(task):
    cot = task.endswith(practice.COT)
    for split in SPLITS:
        for i in range(150):
            example = practice.make_example(task, split, i)
            assert len(TOKEN.findall(example['inputs'])) <= 40, example
            assert len(TOKEN.findall(example['targets'])) <= (36 if cot else 12), example
            assert all(text == ' '.join(text.split()) for text in (example['inputs'], example['targets']))
            assert '{' not in example['inputs'] and example['answer']
            assert practice.postprocess(example['targets']) == example['answer']
            assert cot == bool(example['rationale'])
            if not cot:
                assert example['targets'] == example['answer']


def test_direct_and_rationale_tasks_ask_the_same_question():
    for task in practice.task_names(direct=False, trained=None):
        for split in SPLITS:
            for i in range(20):
                direct = practice.make_example(task.removesuffix(practice.COT), split, i)
                cot = practice.make_example(task, split, i)
                assert cot['inputs'].startswith(direct['inputs'] + ' ') and cot['answer'] == direct['answer']


def fingerprint() -> str:
    rows = [practice.make_example(task, split, i) for task in ALL for split in SPLITS for i in (0, 1, 77)]
    return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()


def test_same_examples_in_every_process():
    folder = os.path.dirname(__file__)
    program = f'import sys; sys.path.insert(0, {folder!r}); import tasks_test; print(tasks_test.fingerprint())'
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
    for seed in ('1', '2'):
        ran = subprocess.run(
            [sys.executable, '-c', program], env={**environment, 'PYTHONHASHSEED': seed}, capture_output=True, text=True
        )
        assert ran.stdout.strip() == fingerprint(), ran.stderr


def test_examples_are_a_sequence():
    rows = practice.Examples('practice_add', 'validation')
    assert len(rows) == 200 and rows[3] == practice.make_example('practice_add', 'validation', 3)
    assert len(list(rows)) == 200
    for index in (200, -1):
        with pytest.raises(IndexError):
            rows[index]
    for wrong in ('practice_nothing', 'practice_add_cot_cot', 'practice_copy_words_cot'):
        with pytest.raises(KeyError):
            practice.Examples(wrong, 'train')


def test_texts_take_turns():
    made = list(practice.texts('train', 2 * len(practice.task_names())))
    assert made[::2] == [practice.make_example(task, 'train', 0)['inputs'] for task in practice.task_names()]
    assert made[1::2] == [practice.make_example(task, 'train', 0)['targets'] for task in practice.task_names()]


def test_mixtures_hold_out_whole_tasks():
    tasks = {name: {task for task, _ in rates} for name, rates in practice.mixtures().items()}
    assert tasks['practice'] == tasks['practice_direct'] | tasks['practice_cot']
    assert not tasks['practice_direct'] & tasks['practice_cot']
    assert not tasks['practice'] & tasks['practice_unseen_tasks']
    assert tasks['practice'] | tasks['practice_unseen_tasks'] == set(ALL)


def test_registers_with_seqio():
    seqio = pytest.importorskip('seqio')
    import t5flan.data.vocabulary.seqio_vocabulary  # noqa: F401  (so that importing TensorFlow is not timed)

    started = time.perf_counter()
    practice.register()
    practice.register()
    assert time.perf_counter() - started < 1
    for name in practice.mixtures():
        expected = {task for task, _ in practice.mixtures()[name]}
        assert {task.name for task in seqio.get_mixture_or_task(name).tasks} == expected
    task = seqio.TaskRegistry.get('practice_story_cot')
    assert set(task.splits) == set(SPLITS)
    record = task.source.records('validation')[5]
    assert record == practice.make_example('practice_story_cot', 'validation', 5)
    texts = (record['targets'], 'So the answer is -1.')
    answers = [task.postprocess_fn(text, is_target=True, example=record) for text in texts]
    assert task.metric_fns[0]([record['answer']] * 2, answers) == {'exact_match': 50.0}


def test_held_out_is_by_instance_not_by_form():
    for name, skill in practice.SKILLS.items():
        for i in range(30):
            assert not is_held_out(skill, practice.draw(skill, 'train', i)[0]), name
            assert is_held_out(skill, practice.draw(skill, 'validation', i)[0]), name
