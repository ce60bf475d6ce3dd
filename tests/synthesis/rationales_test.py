"""Rationales: the prompts, the filter, and a file that the CoT tasks read back."""

import dataclasses
import json

import numpy as np
import pytest
import seqio

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.decoding.config import SAMPLING, Decoding
from t5flan.decoding.generate import Generation
from t5flan.errors import UsageError, UserError
from t5flan.synthesis import rationales as lib
from t5flan.synthesis.rationales import (
    Choice,
    Kept,
    Question,
    Sample,
    choose,
    parse,
    prompt_of,
    rationales,
    read_questions,
)
from t5flan.tasks import cot, registry
from t5flan.tasks.practice import tasks as practice
from tests.saved_model import byte_model, save_folder

VOCABULARY = ByteVocabulary()


class Speaker:
    """A model whose sample i for 'How much is N and 1?' is `say(N, i)`; a text ending in … has no end of sequence."""

    folder, step, max_new_tokens, vocabulary = 'runs/speaker', 7, 64, VOCABULARY

    def __init__(self, say):
        self._say, self.asked = say, []

    def in_format(self, chosen):
        return self

    def input_ids(self, text):
        return VOCABULARY.encode(text)

    def generate_ids(self, inputs, *, decoding, rows):
        texts = [VOCABULARY.decode(ids) for ids in inputs]
        self.asked += texts
        return [
            [
                self._generation(self._say(int(text.rpartition('How much is ')[2].split()[0]), i))
                for i in range(decoding.num_samples)
            ]
            for text in texts
        ]

    def _generation(self, text):
        ended = not text.endswith('…')
        ids = np.array(VOCABULARY.encode(text.rstrip('…')) + [VOCABULARY.eos_id] * ended, np.int32)
        return Generation(ids, np.zeros(len(ids), np.float32), ended, 0.0)


@pytest.fixture
def task(tmp_path):
    lines = [f'How much is {i} and 1?\\nSay.\t{i + 1}\tnot used {i}\n' for i in range(40)]
    stem = f'rat{abs(hash(tmp_path)) % 10**8}'
    (tmp_path / f'{stem}_train.tsv').write_text(''.join(lines), 'utf-8')
    (tmp_path / f'{stem}_validation.tsv').write_text(lines[0], 'utf-8')
    cot.register([str(tmp_path)])
    return f'cot_{stem}'


def made(*args, **settings):
    """`rationales` with the fields of `Choice` among its settings."""
    fields = {field.name: settings.pop(field.name) for field in dataclasses.fields(Choice) if field.name in settings}
    return rationales(*args, choice=Choice(**fields), **settings)


def run(monkeypatch, tmp_path, task, say, name='sampled.tsv', **settings):
    speaker = Speaker(say)
    monkeypatch.setattr(lib, 'load', lambda *_: speaker)
    settings = {'decoding': SAMPLING.replace(num_samples=4), 'limit': 6} | settings
    provenance = made('runs/speaker', task, str(tmp_path / 'out' / name), **settings)
    return speaker, provenance, tmp_path / 'out' / name


def right_at_sample_3():
    """Sample 0 is wrong, sample 1 has no rationale, sample 2 does not end, sample 3 is right."""
    return lambda n, i: [
        f'Hm. So the answer is {n + 2}.',
        f'So the answer is {n + 1}.',
        f'{n} and 1…',
        f'{n} and\none\tare {n + 1}. So the answer is {n + 1}.',
    ][i % 4]


@pytest.mark.parametrize('name', ['sampled.tsv', 'sampled.jsonl'])
def test_right_rationales_are_written_and_read_back(monkeypatch, tmp_path, task, capsys, name):
    speaker, provenance, path = run(monkeypatch, tmp_path, task, right_at_sample_3(), name)
    assert speaker.asked[0] == "How much is 0 and 1?\nSay.\nLet's think step by step."
    assert provenance['counts'] == {
        'questions': 6,
        'draws': 24,
        'with_answer': 12,
        'right': 6,
        'kept': 6,
        'questions_kept': 6,
        'kept_right': 6,
    }
    beside = json.loads((tmp_path / 'out' / f'{name}.provenance.json').read_text('utf-8'))
    assert (
        beside == provenance
        and beside['checkpoint'] == 'runs/speaker'
        and beside['step'] == 7
        and beside['task'] == task
    )
    assert (beside['keep'], beside['samples'], beside['temperature'], beside['seed']) == ('right', 4, 0.7, 0)
    assert '6 rationales of 6 questions kept' in capsys.readouterr().out
    rows = cot.open_rows({'train': str(path), 'validation': str(path)}, 'train', None)
    tab = ' ' if name.endswith('tsv') else '\t'
    assert [row['rationale'] for row in rows] == [f'{n} and\none{tab}are {n + 1}.' for n in range(6)]
    assert rows[2]['question'] == 'How much is 2 and 1?\nSay.' and rows[2]['answer'] == '3'
    cot.register([str(path)])
    new = seqio.TaskRegistry.get(f'cot_{path.stem}') if name.endswith('tsv') else None
    assert new is None or len(new.source.records('train')) == 5
    registry._made.pop(f'cot_{path.stem}', None)
    seqio.TaskRegistry.remove(f'cot_{path.stem}')


def test_votes_need_no_answers(monkeypatch, tmp_path, task):
    say = lambda n, i: f'I count {i}. So the answer is {100 if i or n % 2 else n + 1}.' if i < 3 else 'no idea'
    _, provenance, path = run(monkeypatch, tmp_path, task, say, 'vote.jsonl', keep='vote', each=2, agreement=0.6)
    rows = [json.loads(line) for line in path.read_text('utf-8').split('\n')[:-1]]
    assert {row['target'] for row in rows} == {'100'} and not any(row['right'] for row in rows)
    assert [row['index'] for row in rows] == [1, 1, 3, 3, 5, 5], (
        'three of four agree for odd numbers, two of four for even'
    )
    assert [row['rationale'] for row in rows[:2]] == ['I count 0.', 'I count 1.'] and rows[0]['agreement'] == 0.75
    assert provenance['agreement'] == 0.6 and provenance['counts']['kept_right'] == 0


def test_the_most_frequent_rationale_is_kept():
    question = Question('q', ('7',))
    drawn = [Sample(text, '7') for text in ('A', 'A ', 'B', 'A', ' A')]
    assert [one.rationale for one in choose(0, question, drawn, 'right')] == ['A']
    assert [one.rationale for one in choose(0, question, drawn[::-1], 'vote', each=2)] == [' A', 'B']
    drawn = [Sample(text, '7') for text in ('C', 'B', 'A', 'B', 'A')]
    assert [one.rationale for one in choose(0, question, drawn, 'right', each=3)] == ['B', 'A', 'C'], (
        'the first of equals'
    )


def test_choose():
    question = Question('q', ('12', 'a dozen'))
    drawn = [
        Sample('a', '11'),
        Sample('b', '12.0'),
        Sample('c', '11'),
        Sample('b ', '12'),
        Sample('', '12'),
        Sample('d', 'A dozen'),
    ]
    assert choose(0, question, drawn, 'right', each=9) == [Kept(0, '12', 'b', 2 / 6, True)], 'equal up to spaces'
    assert choose(0, question, drawn, 'vote', agreement=0.3) == [Kept(0, '11', 'a', 2 / 6, False)], (
        'a tie goes to the first'
    )
    assert choose(0, question, drawn, 'vote', agreement=0.4) == [] == choose(0, question, [], 'right')


def test_samples_are_parsed():
    assert parse('So the answer is 1. No. so the ANSWER is 2.') == Sample('So the answer is 1. No.', '2')
    assert parse('3 et 4. La réponse est donc 7.', cot.answer_words()) == Sample('3 et 4.', '7')
    assert parse('nothing') == parse('x. So the answer is ') == Sample('', '')


@pytest.mark.parametrize(
    'a,b,same',
    [
        ('1,000', '1000', True),
        ('yes', 'Yes.', True),
        ('(C)', 'c', True),
        ('12 km', '12', False),
        ('$5', '5.0', True),
        ('a', 'the', False),
        ('7', '8', False),
        ('x2', 'y2', False),
    ],
)
def test_same_answer(a, b, same):
    assert lib.same_answer(a, b) == lib.same_answer(b, a) == same


def test_other_tasks_use_their_zero_shot_prompts():
    practice.register()
    asked, whole = read_questions('practice_minutes_cot', 'validation', 3)
    expected = [practice.make_example('practice_minutes_cot', 'validation', i) for i in range(3)]
    assert whole and [question.text for question in asked] == [example['inputs'] for example in expected]
    assert [question.answers for question in asked] == [(example['answer'],) for example in expected]
    assert all(question.asks and prompt_of(question, None) == question.text for question in asked)
    asked, _ = read_questions('practice_minutes', 'validation', 2)
    assert (
        prompt_of(asked[0], None) == f"{asked[0].text}\nLet's think step by step."
        and prompt_of(asked[0], '') == asked[0].text
    )
    with pytest.raises(UserError, match='practice_cot is a mixture, expected one task. Set --task'):
        read_questions('practice_cot', 'train', 1)


def test_prompts_that_ask_for_a_rationale_are_read_back_unchanged(monkeypatch, tmp_path):
    practice.register()
    speaker = Speaker(lambda n, i: None)
    speaker.generate_ids = lambda inputs, *_, **__: [
        [speaker._generation('It is so. So the answer is 180.')] for _ in inputs
    ]
    monkeypatch.setattr(lib, 'load', lambda *_: speaker)
    path = tmp_path / 'ratasks.tsv'
    found = made('runs/speaker', 'practice_minutes_cot', str(path), decoding=Decoding(), limit=20, keep='vote')
    assert found['whole_prompts'] and found['prompts_ask']
    cot.register([str(path)])
    task = seqio.TaskRegistry.get('cot_ratasks')
    contexts = [Context(None, {}, task='cot_ratasks', index=i) for i in range(19)]
    for example, row in zip(
        task.preprocessors[0].apply_block(list(task.source.records('train'))[:19], contexts),
        task.source.records('train'),
    ):
        assert example['inputs'].endswith(row['question']) or row['question'] in example['inputs']
        assert example['targets'] == 'It is so. So the answer is 180.' and not any(
            x in example['inputs'] for x in InstructionConfig().triggers[1:]
        )
        assert cot.postprocess('', True, example) == cot.postprocess(example['targets']) == '180'


def test_a_real_checkpoint(monkeypatch, tmp_path, task):
    folder = str(save_folder(tmp_path / 'run', byte_model(), steps=(3,)))
    decoding = SAMPLING.replace(num_samples=2, max_new_tokens=4)
    with pytest.raises(UserError, match=f'{task}: none of 2 rationales for each of 3 questions was kept') as error:
        rationales(folder, task, str(tmp_path / 'x.tsv'), limit=3, decoding=decoding)
    assert '\n' not in str(error.value) and not (tmp_path / 'x.tsv').exists()


class Killed(Exception):
    pass


def test_a_killed_run_ends_with_the_same_file(monkeypatch, tmp_path, task):
    settings = {'decoding': SAMPLING.replace(num_samples=4, batch_size=2), 'limit': 20}
    say = right_at_sample_3()
    _, expected, whole = run(monkeypatch, tmp_path, task, say, 'whole.jsonl', **settings)
    calls = []

    def die(n, i):
        calls.append(n)
        if len(calls) > 60:
            raise Killed
        return say(n, i)

    for _ in range(2):  # killed during the same call twice
        with pytest.raises(Killed):
            run(monkeypatch, tmp_path, task, die, 'killed.jsonl', **settings)
        calls[:] = [0] * 60
    with open(tmp_path / 'out' / 'killed.jsonl.journal', 'ab') as journal:
        journal.write(b'{"key": "questions fr')
    speaker, found, path = run(monkeypatch, tmp_path, task, say, 'killed.jsonl', **settings)
    assert path.read_bytes() == whole.read_bytes() and found == expected
    assert len(speaker.asked) == 20 - 12, 'the first 12 questions came from the journal'
    with pytest.raises(UserError, match="is of another run: keep='right', now 'vote'"):
        run(monkeypatch, tmp_path, task, say, 'killed.jsonl', keep='vote', **settings)


@pytest.mark.slow
def test_killed_at_ten_random_moments(monkeypatch, tmp_path, task):
    settings = {'decoding': SAMPLING.replace(num_samples=4, batch_size=1), 'limit': 40, 'keep': 'vote'}
    say = lambda n, i: f'{n} and {i} are enough. So the answer is {n + (i == 2)}.'
    _, _, whole = run(monkeypatch, tmp_path, task, say, 'whole.jsonl', **settings)
    for cut in np.random.default_rng(0).integers(1, 160, 10):
        left = [int(cut)]

        def die(n, i, left=left):
            left[0] -= 1
            if not left[0]:
                raise Killed
            return say(n, i)

        with pytest.raises(Killed):
            run(monkeypatch, tmp_path, task, die, 'killed.jsonl', **settings)
        journal = tmp_path / 'out' / 'killed.jsonl.journal'
        data = journal.read_bytes()
        journal.write_bytes(data[: len(data) - int(cut) % 50])  # the last line is incomplete
        _, _, path = run(monkeypatch, tmp_path, task, say, 'killed.jsonl', **settings)
        assert path.read_bytes() == whole.read_bytes()
        path.unlink()


@pytest.mark.parametrize(
    'text,rationale',
    [
        ('He had 90. He got 6.\nThe answer is 96.', 'He had 90. He got 6.'),
        ('He had 90 and 6.\n#### 96', 'He had 90 and 6.'),
        ('So he has 90 + 6 = $96', 'So he has 90 + 6 = $96'),
        (r'He had 90 and 6, that is \boxed{96}', 'He had 90 and 6, that is'),
        (r'He had 90. Therefore, the final answer is $\boxed{96}$.', 'He had 90.'),
        ('He had 90 and got 6.\n\n**Answer:** 96 apples', 'He had 90 and got 6.'),
        ('He had 90. So the answer is 90 + 6 = 96.', 'He had 90.'),
        ('They had 90. La réponse est donc 96.', 'They had 90.'),
    ],
)
def test_answers_are_read_as_in_the_benchmarks(text, rationale):
    from t5flan.tasks.benchmarks.grade_school_math import GradeSchoolMath

    assert parse(text, cot.answer_words(), is_number=True) == Sample(rationale, '96')
    assert GradeSchoolMath().extract(text, 'gsm8k') == '96'


def test_filters():
    question = Question('Tom has 3 cats and 2 dogs. How many pets does Tom have?', ('5',))
    filters = lib.Filters(min_words=3, max_words=12)
    assert filters.fault('3 and 2 are 5', question.text) == ''
    assert filters.fault('is 5', question.text) == 'too short'
    assert filters.fault('a ' * 13, question.text) == 'too long'
    assert filters.fault('a b c d a b c d a b c d', question.text) == 'repetition'
    assert filters.fault('Tom has 3 cats and 2 dogs.', question.text) == 'copies the question'
    drawn = [Sample('A A', '5', fault='too short')] * 3 + [Sample('B', '5')]
    [kept] = choose(0, question, drawn, 'vote', each=9)
    assert kept.rationale == 'B' and kept.agreement == 1.0, 'a rejected rationale still votes'
    for given in ({'min_words': 9, 'max_words': 2}, {'min_words': -1}, {'copying': 1.5}, {'repetition': -0.1}):
        with pytest.raises(UsageError):
            lib.Filters(**given)


def test_exemplars_draws_and_scores(monkeypatch, tmp_path, task):
    exemplars = [{'question': 'How much is 5 and 5?', 'rationale': '5 and 5 are 10.', 'answer': '10'}]
    solved = 'Q: How much is 5 and 5?\nA: 5 and 5 are 10. So the answer is 10.\n\nQ: '
    monkeypatch.setattr(
        Speaker, 'score_ids', lambda _, inputs, targets: [-2.0 * len(one) for one in targets], raising=False
    )
    speaker = Speaker(right_at_sample_3())
    monkeypatch.setattr(lib, 'load', lambda *_: speaker)
    path, draws = tmp_path / 'x.jsonl', tmp_path / 'draws.jsonl'
    given = dict(decoding=SAMPLING.replace(num_samples=4, batch_size=1), limit=1)
    made('x', task, str(path), exemplars=exemplars, score=True, draws=str(draws), **given)
    assert speaker.asked[0].startswith(solved) and speaker.asked[0].endswith('step by step.\nA:')
    [row] = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
    assert row['log_likelihood'] == -2.0
    rows = [json.loads(line) for line in draws.read_text('utf-8').splitlines()]
    assert [row['verdict'] for row in rows] == ['too short', 'no rationale', 'did not end', 'kept']
    assert [row['right'] for row in rows] == [False, True, False, True] and rows[2]['text'] == '0 and 1'


@pytest.mark.parametrize(
    'say,reason',
    [
        (lambda n, i: f'{n} is a fine number…', 'did not end: increase --max_new_tokens'),
        (lambda n, i: 'No idea at all', 'no draw announces an answer: show how with --exemplars'),
        (lambda n, i: f'The answer is {n + 1}.', 'answers without a rationale'),
        (lambda n, i: f'well. The answer is {n + 1}.', "filters reject 24 rationales as 'too short'"),
        (lambda n, i: f'Let me see now. The answer is {n + 7}.', 'the answers are not right'),
    ],
)
def test_nothing_kept_is_explained_with_three_draws(monkeypatch, tmp_path, task, say, reason):
    with pytest.raises(UserError) as error:
        run(monkeypatch, tmp_path, task, say)
    text = str(error.value)
    assert reason in text and '\n' not in text
    assert text.split('Three draws: ')[1].count(say(0, 0).rstrip('…')[-9:].strip('0123456789. ')) == 3


@pytest.mark.parametrize(
    'settings,pattern',
    [
        ({'score': True}, '--score with --output=x.tsv'),
        ({'draws': 'x.txt'}, '--draws=x.txt'),
        ({'keep': 'best'}, '--keep=best, expected right or vote'),
        ({'output': 'x.csv'}, '--output=x.csv, expected a file name that ends in .tsv or .jsonl'),
        ({'each': 0}, '--each=0'),
        ({'agreement': 0.0}, '--agreement=0.0'),
        ({'decoding': SAMPLING.replace(temperature=0.0)}, '--temperature=0 returns the same rationale 8 times'),
    ],
)
def test_settings_out_of_range(settings, pattern):
    with pytest.raises(UsageError, match=pattern):
        made('none', 'none', **{'output': 'x.tsv'} | settings)


def test_flags_override_gin_and_gin_overrides_the_defaults(monkeypatch, tmp_path):
    used = []
    monkeypatch.setattr(lib, 'rationales', lambda *_, decoding, **__: used.append(decoding))
    folder = save_folder(tmp_path / 'run', byte_model(), steps=(3,))

    def run(*argv):
        line = ['rationales', f'--checkpoint={folder}', '--task=cot_gsm8k', '--output=x.tsv', *argv]
        command, arguments = parse_arguments(line, COMMANDS)
        command.run(arguments)

    run()
    run('--gin.Decoding.temperature=1.0', '--gin.Decoding.seed=3', '--seed=4', '--samples=2')
    assert used == [Decoding(None, 0.7, num_samples=8, batch_size=8), Decoding(None, 1.0, 0, 1.0, 2, 4, 8)]
    with pytest.raises(UsageError, match='num_samples=0, expected an integer of 1 or more. Set --samples'):
        run('--samples=0')
