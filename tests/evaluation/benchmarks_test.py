"""`t5flan evaluate --benchmark`: prompts that fit, likelihoods, votes, resuming."""

import json

import numpy as np
import pytest

from t5flan.__main__ import main
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.evaluation import benchmarks
from t5flan.evaluation.benchmarks import evaluate_benchmarks, fitting, likeliest
from t5flan.language_model import load
from t5flan.scoring.benchmark import Question
from t5flan.tasks.benchmarks import find
from tests.adapters.properties import write_adapter
from tests.saved_model import byte_model, save_folder

LONG = 4000
"""Bytes that no prompt of these tests has."""


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return str(save_folder(tmp_path_factory.mktemp('run'), byte_model(), steps=(4,)))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / 'data' / 'bbh'
    (folder / 'cot-prompts').mkdir(parents=True)
    exemplar = "Q: {}\nA: Let's think step by step.\nSo the answer is Yes.\n\n"
    for task in ('navigate', 'web_of_lies'):
        examples = [{'input': f'{task} {i}?', 'target': 'Yes' if i % 2 else 'No'} for i in range(6)]
        (folder / f'{task}.json').write_text(json.dumps({'examples': examples}))
        text = 'canary\n-----\nAnswer.\n\n' + ''.join(map(exemplar.format, 'abc'))
        (folder / 'cot-prompts' / f'{task}.txt').write_text(text)
    mmlu = tmp_path / 'data' / 'mmlu'
    for split, rows in (('dev', 5), ('test', 3)):
        (mmlu / split).mkdir(parents=True)
        (mmlu / split / f'virology_{split}.csv').write_text('q,1,2,3,4,A\n' * rows)
    return tmp_path / 'data'


@pytest.fixture
def answers(monkeypatch):
    """Replaces the model's samples with the text this returns for a prompt; records the prompts."""
    asked = []

    def samples(self, texts, count, limit, *, decoding, rows):
        asked.extend(texts)
        return [[f' {"Yes" if (len(text) + i) % 3 else "No"}' for i in range(count)] for text in texts]

    monkeypatch.setattr('t5flan.language_model.LanguageModel.samples', samples)
    return asked


def command(checkpoint, data, *rest):
    line = ['evaluate', f'--checkpoint={checkpoint}', f'--benchmark_dir={data}', f'--prompt_length={LONG}', *rest]
    return main(line)


def test_a_checkpoint_is_evaluated(checkpoint, data, tmp_path, capsys):
    """An untrained model, whose answers are noise, through all of the way."""
    out, rows = tmp_path / 'out.json', tmp_path / 'rows.jsonl'
    rest = ['--limit=2', '--max_new_tokens=4', f'--json={out}', f'--predictions={rows}']
    assert command(checkpoint, data, '--benchmark=bbh_direct,mmlu_likelihood', *rest) == 0
    found = json.loads(out.read_text())
    assert list(found['benchmarks']) == ['bbh_direct', 'mmlu_likelihood'] and found['step'] == 4
    assert found['benchmarks']['bbh_direct']['tasks']['navigate']['examples'] == 2
    assert found['benchmarks']['mmlu_likelihood']['tasks']['virology']['no_answer'] == 0
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == 6 and written[0]['prompt'].startswith('Answer.\n\nQ: a\nA: Yes\n\n')
    assert written[0]['prompt'] == find('bbh_direct').questions(str(data), 'navigate')[0].prompt()
    assert {row['prediction'] for row in written[4:]} <= set('ABCD')
    assert 'mean of all (2)' in capsys.readouterr().out
    again = tmp_path / 'again.json'
    assert main(['score', '--benchmark=bbh_direct', f'--predictions={rows}', f'--json={again}']) == 0
    assert json.loads(again.read_text())['tasks'] == found['benchmarks']['bbh_direct']['tasks']


def test_a_stopped_run_resumes(checkpoint, data, tmp_path, answers, monkeypatch):
    rows = tmp_path / 'rows.jsonl'
    run = lambda **more: evaluate_benchmarks(
        checkpoint, [find('bbh_direct')], str(data), prompt_length=LONG, predictions=str(rows), **more
    )
    whole = run()
    assert len(answers) == 12
    text = rows.read_bytes()
    rows.write_bytes(text[: text.index(b'\n', len(text) // 2) + 40])  # stopped within a row
    answers.clear()
    assert run()['benchmarks'] == whole['benchmarks'] and 0 < len(answers) < 12 and rows.read_bytes() == text
    answers.clear()
    assert run()['benchmarks'] == whole['benchmarks'] and not answers
    with pytest.raises(UserError, match='does not answer a row of this input. Set another --predictions'):
        run(decoding=Decoding(max_new_tokens=3))


def test_answers_of_an_adapter_are_not_those_of_its_base(checkpoint, data, tmp_path, answers, capsys):
    adapter = write_adapter(tmp_path / 'adapter', checkpoint, Ia3())
    files = [f'--predictions={tmp_path}/rows.jsonl', f'--json={tmp_path}/out.json']
    rest = ['--benchmark=bbh_direct', '--limit=1', *files]
    given = [f'--adapters=mine={adapter}', '--adapter=mine']
    assert command(checkpoint, data, *rest, *given) == 0
    assert json.loads((tmp_path / 'out.json').read_text())['settings']['adapter']['checkpoint'] == adapter
    rows = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
    assert {row['adapter'] for row in rows} == {adapter}
    assert command(checkpoint, data, *rest) == 1
    assert 'Set the former, or another --predictions' in capsys.readouterr().err


def test_answers_end_at_the_stop_strings_of_the_benchmark_and_of_the_run(checkpoint, data, tmp_path, monkeypatch):
    """Prompts with the same stop strings are decoded together, in their order."""
    (data / 'mgsm').mkdir()
    for code in ('de', 'fr'):
        (data / 'mgsm' / f'mgsm_{code}.tsv').write_text('1 + 1?\t2\n2 + 2?\t4\n')
    shown = {str(i): {'q': 'q', 'a': 'a'} for i in range(8)}
    (data / 'mgsm' / 'exemplars.json').write_text(json.dumps({'MGSM_EXEMPLARS': {'de': shown, 'fr': shown}}))
    asked = []

    def samples(self, texts, count, limit, *, decoding, rows):
        asked.append((decoding.stop, list(rows)))
        return [['2'] for _ in texts]

    monkeypatch.setattr('t5flan.language_model.LanguageModel.samples', samples)
    rows = tmp_path / 'rows.jsonl'
    rest = ['--stop=###', f'--predictions={rows}', '--tasks=navigate,web_of_lies,de,fr', '--limit=2']
    assert command(checkpoint, data, '--benchmark=bbh_direct,mgsm', *rest) == 0
    questions = ('\nQuestion:', ' Question:', '\nQ:', ' Q:')
    assert asked == [
        (('###', '\nQ:', ' Q:'), [0, 1, 2, 3]),
        (('###', '\nFrage:', ' Frage:', *questions), [4, 5]),
        (('###', '\nQuestion :', ' Question :', *questions), [6, 7]),
    ]
    rest[0] = '--stop=##'
    assert command(checkpoint, data, '--benchmark=bbh_direct,mgsm', *rest) == 1, 'these answers ended elsewhere'


def test_samples_vote(checkpoint, data, tmp_path, answers):
    rows, out = tmp_path / 'rows.jsonl', tmp_path / 'out.json'
    rest = ['--samples=3', '--temperature=0.7', '--tasks=navigate', f'--predictions={rows}', f'--json={out}']
    assert command(checkpoint, data, '--benchmark=bbh_direct', *rest) == 0
    assert json.loads(rows.read_text().splitlines()[0])['prediction'].count(' Yes') == 2
    assert json.loads(out.read_text())['benchmarks']['bbh_direct']['score'] == 50, 'always Yes by a vote'


def test_exemplars_are_dropped_from_the_front_and_counted(checkpoint, data, answers):
    [question] = find('bbh_direct').questions(str(data), 'navigate', 1)
    exemplar, whole = 'Q: a\nA: Yes\n\n', len(question.prompt()) + 1  # and the end of sequence
    model = load(checkpoint)
    assert fitting(model, question, None) == (0, 0) and fitting(model, question, whole) == (0, whole)
    rest = whole - len(exemplar)
    assert fitting(model, question, whole - 1) == fitting(model, question, rest) == (1, rest)
    bare = whole - 3 * len(exemplar)
    assert fitting(model, question, bare) == fitting(model, question, bare - 1) == (3, bare)
    found = evaluate_benchmarks(
        checkpoint, [find('bbh_direct')], str(data), tasks=['navigate'], prompt_length=whole - len(exemplar)
    )
    assert found['benchmarks']['bbh_direct']['exemplars_dropped'] == {0: 0, 1: 6}
    assert all(text.startswith('Answer.\n\nQ: b\n') for text in answers)


def test_the_likeliest_option_is_that_of_the_model(checkpoint):
    model = load(checkpoint)
    prompts, options = ['one', 'another question'], [(' A', ' B', ' C'), (' x', ' yy')]
    found = likeliest(model, prompts, options, 4)
    for prompt, choices, best in zip(prompts, options, found, strict=True):
        alone = [model.score_ids([model.input_ids(prompt)], [model.vocabulary.encode(one)])[0] for one in choices]
        assert best == choices[int(np.argmax(alone))].strip()


def test_the_length_of_training_is_the_limit(checkpoint):
    model = load(checkpoint)
    assert benchmarks._input_limit(model, 8) == 24
    object.__setattr__(model, 'format', 'causal_lm')
    assert benchmarks._input_limit(model, 8) == 28 and benchmarks._input_limit(model, 30) == 18
    object.__setattr__(model, 'feature_lengths', {})
    assert benchmarks._input_limit(model, 8) is None


@pytest.mark.parametrize(
    ('rest', 'code', 'message'),
    [
        (['--benchmark=bbh_dirct'], 1, 'did you mean bbh_direct?'),
        (['--benchmark=bbh_direct', '--tasks=navigat'], 1, "no task 'navigat' of bbh_direct; did you mean navigate?"),
        (['--benchmark=bbh_direct', '--limit=0'], 2, '--limit=0'),
        (['--benchmark=bbh_direct', '--samples=2'], 1, 'Set --temperature=0.7'),
        (['--benchmark=tydiqa'], 1, 'the files of tydiqa. Set --benchmark_dir'),
        (['--benchmark=bbh_direct,mmlu_direct', '--tasks=navigate'], 1, 'no questions of mmlu_direct are selected'),
        ([], 2, 'go together'),
    ],
)
def test_bad_input_is_reported_in_one_line(checkpoint, data, capsys, rest, code, message):
    assert command(checkpoint, data, *rest) == code
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


TEST, DEV, PROMPT = 'mmlu/test/virology_test.csv', 'mmlu/dev/virology_dev.csv', 'bbh/cot-prompts/navigate.txt'


@pytest.mark.parametrize(
    ('benchmark', 'file', 'content', 'message'),
    [
        ('mmlu_direct', TEST, None, 'has no test/*_test.csv or mmlu/test/*_test.csv'),
        ('mmlu_direct', DEV, None, 'virology_dev.csv: no such file. Set --benchmark_dir'),
        ('mmlu_direct', DEV, '', 'virology_dev.csv has no rows'),
        ('mmlu_likelihood', TEST, '', 'virology_test.csv has no rows'),
        ('mmlu_likelihood', TEST, 'q,1,2,A\n', 'row 1 has 4 columns, expected question, A, B, C, D and the letter'),
        ('mmlu_direct', TEST, 'question,A,B,C,D,answer\n', "row 1 has 6 columns and ends with 'answer', expected"),
        ('mmlu_direct', TEST, 'q,1,2,3,4,E\n', "ends with 'E'"),
        ('mmlu_cot', TEST, 'q,1,2,3,4,A\n', 'mmlu-cot.json: no such file, the exemplars of mmlu_cot'),
        ('bbh_direct', 'bbh/navigate.json', '{"examples": [{"question": "x"}]}', 'is not a file of BIG-Bench Hard'),
        ('bbh_direct', 'bbh/navigate.json', '{"examples": []}', 'has no examples'),
        ('bbh_direct', 'bbh/navigate.json', '<html>', 'is not a file of BIG-Bench Hard'),
        ('bbh_cot', PROMPT, None, 'no such file, the exemplars of navigate. Copy cot-prompts there'),
        ('bbh_cot', PROMPT, '', 'has 0 exemplars after its instruction and "-----", expected 3'),
        ('bbh_direct', PROMPT, 'canary\n-----\nAnswer.\n\nQ: a\n\nQ: b\n\nQ: c\n', 'an exemplar has no "A: "'),
        ('gsm8k', 'gsm8k/test.jsonl', '{"question": "x"}\n', "no field 'answer'"),
        ('gsm8k', 'gsm8k/test.jsonl', '', 'gsm8k/test.jsonl is empty'),
        ('human_eval', 'human_eval/HumanEval.jsonl', '{"prompt": "x"}\n', "no field 'test'"),
        ('human_eval', 'human_eval/HumanEval.jsonl', '', 'HumanEval.jsonl is empty'),
        ('mbpp', 'mbpp/mbpp.jsonl', '{"task_id": 11}\n', "no field 'text'"),
        ('tydiqa', 'tydiqa/english_tydiqa_dev.json', '{"data": [{}]}', 'is not SQuAD 1.1 JSON with answers'),
        ('tydiqa', 'tydiqa/english_tydiqa_dev.json', '{"data": []}', 'has no questions'),
        ('mgsm', 'mgsm/mgsm_de.tsv', 'Wie viel?\t5\n', 'has no exemplars.py, the exemplars of MGSM'),
        (
            'translation',
            'parallel/deu-eng.tsv',
            'Guten Tag.\tGood day.\n',
            'has 1 pairs, expected 5 exemplars and more',
        ),
        ('natural_instructions', 'natural_instructions/tasks/task1.json', '{}', 'has no splits/default/test_tasks.txt'),
    ],
)
def test_bad_files_are_reported_in_one_line(checkpoint, data, answers, capsys, benchmark, file, content, message):
    """Missing subjects, wrong columns, no exemplars: before anything is generated, with the file and how to fix it."""
    path = data / file
    if content is None:
        path.unlink()
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert command(checkpoint, data, f'--benchmark={benchmark}') == 1 and not answers
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1 and error.startswith('t5flan: ') and 'Traceback' not in error
    assert any(fix in error for fix in ('Set ', 'Get the', 'Copy ')), 'says how to fix it'


def test_a_prompt_that_is_too_long_is_reported_before_anything_is_generated(checkpoint, data, answers, capsys):
    line = ['evaluate', f'--checkpoint={checkpoint}', f'--benchmark_dir={data}', '--benchmark=bbh_direct']
    assert main(line) == 1 and not answers
    assert '12 of 12 questions have more than 24 tokens' in capsys.readouterr().err


def test_a_folder_without_a_vocabulary_is_reported(data, tmp_path, capsys):
    folder = save_folder(tmp_path / 'run', byte_model(), steps=(1,))
    for path in sorted((folder / 'vocabulary').rglob('*'), reverse=True):
        path.unlink()
    assert command(folder, data, '--benchmark=bbh_direct') == 1
    error, *others = [line for line in capsys.readouterr().err.splitlines() if not line.startswith('note: ')]
    assert 'the folder has no vocabulary.json' in error and not others
    assert command(tmp_path, data, '--benchmark=bbh_direct') == 1
    assert 'is not a checkpoint folder' in capsys.readouterr().err


def test_the_question_keeps_its_first_examples_where_the_last_are_left_out():
    question = Question('t', 0, ('1', '2', '3'), '?', 'x', 'h', drop_last=True)
    assert [question.prompt(dropped) for dropped in range(4)] == ['h123?', 'h12?', 'h1?', 'h?']


def test_the_normalized_average_needs_all_six(checkpoint, data, monkeypatch):
    """Here the six are one benchmark under six names."""

    def named(name):
        benchmark = find('bbh_direct')
        benchmark.name = name
        return benchmark

    monkeypatch.setattr(
        't5flan.language_model.LanguageModel.samples', lambda self, texts, *_, **__: [['Yes']] * len(texts)
    )
    run = lambda names: evaluate_benchmarks(checkpoint, [named(name) for name in names], str(data), prompt_length=LONG)
    names = list(benchmarks.BASELINES)
    assert 'normalized_average' not in run(names[:-1])
    found = run(names)
    assert found['mean'] == 50
    assert found['normalized_average'] == pytest.approx(
        np.mean([100 * (50 - random) / (100 - random) for random in benchmarks.BASELINES.values()])
    )


def test_steps_are_evaluated_once_and_resume(data, tmp_path, capsys, answers):
    run = save_folder(tmp_path / 'run', byte_model(), steps=(4, 8))
    out, rows = tmp_path / 'out.json', tmp_path / 'rows.jsonl'
    rest = ['--benchmark=bbh_direct', '--limit=2', '--steps=all', f'--json={out}', f'--predictions={rows}']
    assert command(run, data, *rest) == 0
    shown = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [one['step'] for one in found['steps']] == [4, 8] and '2 checkpoints' in shown and len(answers) == 8
    for step in (4, 8):
        written = [json.loads(line) for line in (tmp_path / f'rows-step{step}.jsonl').open()]
        assert len(written) == 4 and {row['step'] for row in written} == {step}
    samples = found['steps'][0]['benchmarks']['bbh_direct']['samples']
    assert samples and all(row['prompt'] in answers for row in samples)
    right = [row['prediction'].strip() == row['target'] for row in samples]
    assert right == [row['correct'] for row in samples] == sorted(right, reverse=True)

    assert command(run, data, *rest) == 0
    assert len(answers) == 8 and 'step 8: the results are in' in capsys.readouterr().err
    rest.remove('--steps=all')
    assert command(run, data, *rest, '--steps=7') == 1
    assert 'has no step 7; it has 4, 8. Set --steps' in capsys.readouterr().err
    assert command(run, data, *rest, '--step=4', '--steps=all') == 2
    assert '--step and --steps both choose checkpoints' in capsys.readouterr().err
    assert command(run, data, *rest, '--steps=best') == 1
    assert 'has no best checkpoint' in capsys.readouterr().err
