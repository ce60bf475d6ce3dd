"""tasks/cot.py: files of rationales become tasks, with options, languages and splits."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import seqio

from t5flan.data.batches.pipeline import TrainPipeline, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixtures.mixing import tasks_and_rates
from t5flan.data.preprocessing.examples import Context
from t5flan.data.skipped import left_out_lines, skipped_tasks
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import cot
from tests.vocabulary import vocabulary_chosen

VOCABULARY = ByteVocabulary()


def lines(count, first=0):
    return [
        f'How much is {i} and 1?\\nThink\u2028it over.\t{i + 1}\t{i} and 1\\nare {i + 1}'
        for i in range(first, first + count)
    ]


def rows(count, **more):
    made = [
        {'source': f'Add 1 to {i}.', 'target': f'{i + 1}', 'rationale': f'{i} and 1 are {i + 1}'} for i in range(count)
    ]
    return [row | {'task': 'add', 'type': 'CoT'} | more for row in made]


def write(path, content):
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == '.jsonl' and not isinstance(content, str):
        content = [json.dumps(row, ensure_ascii=False) for row in content]
    if path.suffix == '.json':
        content = json.dumps(content, ensure_ascii=False)
    text = content if isinstance(content, str) else '\n'.join(content) + '\n'
    path.write_bytes(text.encode())
    return str(path)


def records(task, split='train'):
    return seqio.TaskRegistry.get(task).source.records(split)


def examples(task, count, split='train', **settings):
    function, *_ = seqio.TaskRegistry.get(task).preprocessors
    instructions = InstructionConfig(**{'inverted': 0} | settings)
    contexts = [Context(None, {}, task=task, split=split, index=i, instructions=instructions) for i in range(count)]
    found = records(task, split)
    return function.apply_block([found[i % len(found)] for i in range(count)], contexts)


def test_flans_files_become_tasks_with_both_variants(tmp_path):
    write(tmp_path / 'coa_train.tsv', lines(60))
    write(tmp_path / 'cob.tsv', lines(20))
    for _ in range(2):
        cot.register([str(tmp_path)])
    train, held = records('cot_coa'), records('cot_coa', 'validation')
    assert len(train) + len(held) == 60 and len(held) >= 1
    assert {row['question'] for row in train}.isdisjoint(row['question'] for row in held)
    answer = train[0]['answer']
    assert train[0] == {
        'question': f'How much is {int(answer) - 1} and 1?\nThink\u2028it over.',
        'answer': answer,
        'rationale': f'{int(answer) - 1} and 1\nare {answer}',
        'task': '',
    }
    rates = {task.name: rate for task, rate in tasks_and_rates(seqio.get_mixture_or_task('cot'))}
    sizes = {name: len(records(name)) for name in ('cot_coa', 'cot_cob')}
    assert rates == {name: pytest.approx(size / sum(sizes.values())) for name, size in sizes.items()}
    made = examples('cot_coa', 200, rationale=0.5)
    for example in made:
        has, answer = 'rationale' in example['variant'], example['answer']
        reasons = f'{int(answer) - 1} and 1\nare {answer}. So the answer is {answer}.'
        assert example['targets'] == (reasons if has else answer)
        assert any(trigger in example['inputs'] for trigger in InstructionConfig().triggers) == has
        assert cot.postprocess(example['targets']) == cot.postprocess('', True, example) == example['answer']
    assert 0.35 < np.mean(['rationale' in example['variant'] for example in made]) < 0.65


def test_splits_by_name(tmp_path):
    for name, count in (('train', 9), ('dev', 4), ('test', 3)):
        write(tmp_path / f'coc_{name}.tsv', lines(count, count * 10))
    cot.register([str(tmp_path)])
    assert [len(records('cot_coc', split)) for split in ('train', 'validation', 'test')] == [9, 4, 3]


def test_options_at_the_end_of_a_question():
    item = {'question': 'Which?\nOptions:\n- (A) red\n- (B) blue sky', 'answer': '(B)', 'rationale': 'The sky is.'}
    assert cot.split_options(item) == {
        'question': 'Which?',
        'answer': 'blue sky',
        'rationale': 'The sky is.',
        'options': ['red', 'blue sky'],
    }
    lettered = item | {'rationale': 'Thus (B).'}
    assert cot.split_options(lettered) == lettered, 'letters that the rationale refers to stay'
    assert cot.split_options(item | {'answer': 'green'})['question'] == item['question']
    plain = {'question': 'Is it?\nOptions:\n- yes\n- no\n', 'answer': 'no', 'rationale': ''}
    assert cot.split_options(plain)['options'] == ['yes', 'no']
    without = plain | {'question': 'Is it?'}
    assert cot.split_options(without) == without


@pytest.mark.parametrize(
    'suffix,content',
    [
        ('.json', {str(i): row for i, row in enumerate(rows(30) + rows(10, task='other one'))}),
        ('.json', rows(30) + rows(10, task='other one')),
        ('.jsonl', rows(30) + rows(10, task='other one')),
    ],
)
def test_the_cot_collection_has_a_task_for_each_of_its_own(tmp_path, suffix, content):
    stem = f'collection{suffix[1:]}{type(content).__name__}'
    cot.register([write(tmp_path / f'{stem}{suffix}', content)])
    sizes = {
        name: len(records(f'cot_{stem}_{name}')) + len(records(f'cot_{stem}_{name}', 'validation'))
        for name in ('add', 'other_one')
    }
    assert sizes == {'add': 30, 'other_one': 10}
    for example in examples(f'cot_{stem}_add', 40, rationale=1.0, few_shot=0.0):
        end = f' are {example["answer"]}. So the answer is {example["answer"]}.'
        assert example['inputs'].startswith('Add 1 to ') and example['targets'].endswith(end)


def test_triggers_and_answers_are_in_the_language_of_the_file(tmp_path):
    for language in cot.languages():
        content = [{'source': 'Q?', 'target': '12', 'rationale': 'R'}] * 30
        cot.register([write(tmp_path / f'CoT_collection_{language}.json', content)])
        made = examples(f'cot_CoT_collection_{language}', 60, rationale=1.0, few_shot=0.0)
        own = cot.languages()[language]
        for example in made:
            assert any(trigger in example['inputs'] for trigger in own['triggers'])
            assert example['targets'] == own['rationale'].format(rationale='R.', answer='12')
            assert cot.postprocess(example['targets']) == '12'
        assert len({example['inputs'] for example in made}) > 8
        assert all('{question}' in text for text in own['templates'])


def test_prompts_in_another_language_stay_as_they_are(tmp_path):
    cot.register([write(tmp_path / 'whole_fr.json', rows(20))])
    for example in examples('cot_whole_fr_add', 30, rationale=1.0, few_shot=0.0):
        assert example['inputs'].startswith('Add 1 to ') and 'La réponse est donc' in example['targets']


def test_a_large_file_is_scanned_once(tmp_path, monkeypatch):
    monkeypatch.setattr('t5flan.data.records.file_index.SMALLEST', 0)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    path = write(tmp_path / 'large.json', rows(9) + rows(5, task='other') + rows(3))
    first = cot.index_of(path)
    assert first.info == {'add': [0, 12], 'other': [12, 17]} and first.rows.shape == (17, 5)
    monkeypatch.setattr(cot, '_scan', lambda path: pytest.fail('scanned again'))
    cot._index.cache_clear()
    kept = cot.index_of(path)
    assert kept.info == first.info and (kept.rows == first.rows).all()


def test_seqio_reads_the_task_too(tmp_path):
    cot.register([write(tmp_path / 'cog.tsv', lines(9))])
    with vocabulary_chosen(VOCABULARY):
        task = seqio.get_mixture_or_task('cot_cog')
        dataset = task.get_dataset({'inputs': 300, 'targets': 64}, 'train', shuffle=False)
        assert all(example['targets'][-1] == VOCABULARY.eos_id for example in dataset.as_numpy_iterator())


def test_the_pipeline_reads_it(tmp_path):
    cot.register([write(tmp_path / 'cod.tsv', lines(30))])
    config = DataConfig('cot_cod', 4, {'inputs': 300, 'targets': 64}, 'bytes')
    with TrainPipeline(config, VOCABULARY) as pipeline:
        batch, _ = next(pipeline)
    text = VOCABULARY.decode(batch['encoder_input_tokens'][0])
    assert 'How much' in text or 'and 1' in text
    example = eval_examples(dataclasses.replace(config, split='validation'), VOCABULARY)[0]
    assert cot.postprocess('So the answer is x.', False, example) == 'x'
    assert cot.postprocess('', True, example) == example['answer']


@pytest.mark.parametrize(
    'name,content,pattern',
    [
        ('coe1.tsv', ['a\tb\tc', 'a\tb'], r'coe1\.tsv line 2: 2 columns, expected 3'),
        ('coe2.tsv', ['a\t\tc'], r'line 1: the answer is empty'),
        ('coe3.tsv', '', r'coe3\.tsv is empty'),
        (
            'coe4.json',
            [{'source': 'a', 'target': 'b'}],
            r"coe4\.json row 1: no field 'rationale'; the fields are source, target",
        ),
        ('coe5.json', {'0': {'source': 'a', 'target': 3, 'rationale': ''}}, r"coe5\.json '0': field 'target' is int"),
        ('coe6.jsonl', '{"source": "a"\n', r'coe6\.jsonl line 1: not JSON'),
        ('coe7.json', [], r'coe7\.json: no rows'),
        ('coe8.json', [1], r'row 1: is int, not a JSON object'),
        ('coe9_test.tsv', ['a\tb\tc'], r'there is no coe9_train beside it'),
    ],
)
def test_one_line_for_a_bad_file_and_the_rest_continues(tmp_path, name, content, pattern):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=pattern) as error:
        cot.register([path])
        TrainPipeline(
            DataConfig(f'cot_{name.partition(".")[0]}', 4, {'inputs': 300, 'targets': 64}, 'bytes'), VOCABULARY
        )
    assert '\n' not in str(error.value)
    good = write(tmp_path / f'good{name[:4]}.json', rows(3, task=None))
    cot.register([path, good], skip_broken=True)
    config = DataConfig('cot', 4, {'inputs': 300, 'targets': 64}, 'bytes', skip_broken=True)
    with TrainPipeline(config, VOCABULARY) as pipeline:
        assert list(pipeline.rates) == [f'cot_good{name[:4]}']
        next(pipeline)


def test_data_sets_of_zero_shot_cot_are_read_as_published(tmp_path):
    arithmetic = [{'iIndex': i, 'sQuestion': f'How much is {i} and 1?', 'lSolutions': [i + 1.0]} for i in range(20)]
    scored = [{'input': f'Is {i} even?', 'target_scores': {'Yes': 1 - i % 2, 'No': i % 2}} for i in range(20)]
    bigbench = {'name': 'even', 'keywords': ['numbers', 'zero-shot'], 'metrics': [], 'examples': scored}
    cot.register([write(tmp_path / 'AddSub.json', arithmetic), write(tmp_path / 'coh.json', bigbench)])
    for example in examples('cot_AddSub', 30, few_shot=0.0):
        assert example['targets'] == str(int(example['inputs'].split('How much is ')[1].split()[0]) + 1)
        assert 'rationale' not in example['variant']
    made = examples('cot_coh', 40, few_shot=0.5, options=1.0)
    assert all('options' in example['variant'] for example in made)
    assert all('Yes' in example['inputs'] and 'No' in example['inputs'] for example in made)
    answers = [{'question': f'q{i}', 'answer': f'{i} <<1+1=2>>and 1.\n#### {i + 1}'} for i in range(9)]
    cot.register([write(tmp_path / 'coi_train.jsonl', answers)])
    for example in examples('cot_coi', 20, few_shot=0.0, rationale=1.0):
        number = int(example['answer'])
        assert example['targets'] == f'{number - 1} and 1. So the answer is {number}.'


def test_flans_and_t0s_exports_stay_as_they_are(tmp_path):
    flan = [
        {
            'inputs': f'Q: is {i} odd?\nLet us think.',
            'targets': f'It is {i}. So the answer is {"no" if i % 2 else "yes"}.',
            '_template_idx': 3, '_task_source': 'CoT', '_task_name': f'cot_set{i % 2}', '_template_type': 'zs_noopt',
        }
        for i in range(30)
    ]  # fmt: skip
    t0 = [
        {
            'inputs': [1, 2], 'inputs_pretokenized': f'Is it {i}?', 'targets': [3],
            'targets_pretokenized': f'{answer} {i}',
            'answer_choices': ['yes', 'no'], 'is_correct': answer == 'yes',
        }
        for i in range(15) for answer in ('yes', 'no')
    ]  # fmt: skip
    cot.register([write(tmp_path / 'coj.jsonl', flan), write(tmp_path / 'cok.json', t0)])
    made = examples('cot_coj_cot_set0', 20, few_shot=1.0, inverted=1.0)
    assert all((one['inputs'], one['targets']) in {(row['inputs'], row['targets']) for row in flan} for one in made)
    assert {cot.postprocess('', True, one) for one in made} == {'yes'}
    made = examples('cot_cok_published', 20, few_shot=1.0)
    assert {one['targets'].split()[0] for one in made} == {'yes'}, 'wrong options are left out'
    assert (
        f'{tmp_path}/cok.json: left out wrong options of rank classification (15; the first: row 2)' in left_out_lines()
    )


@pytest.mark.parametrize('suffix,place', [('.tsv', 'line 3'), ('.jsonl', 'line 3'), ('.json', 'row 3')])
def test_skip_broken_skips_rows_and_lists_them(tmp_path, monkeypatch, suffix, place):
    monkeypatch.setattr('t5flan.data.records.file_index.SMALLEST', 0)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    content = [*lines(2), 'no columns', *lines(20, 2)]
    if suffix != '.tsv':
        content = [{'source': line, 'target': 't', 'rationale': ''} for line in content]
        content[2]['target'] = 3
    path = write(tmp_path / f'col{suffix[1:]}{suffix}', content)
    with pytest.raises(UserError, match=f'{place}: .* Set --skip_broken to continue without it'):
        cot.index_of(path)
    for _ in range(2):
        cot._index.cache_clear()
        assert len(cot.index_of(path, skip_broken=True).rows) == 22 and f'{path} {place}' in skipped_tasks()
    cot.register([path], skip_broken=True)
    task = f'cot_col{suffix[1:]}'
    assert len(records(task)) + len(records(task, 'validation')) == 22


def test_one_line_for_a_taken_name_and_for_a_bad_folder(tmp_path):
    a, b = write(tmp_path / 'a' / 'cof.tsv', lines(3)), write(tmp_path / 'b' / 'cof.tsv', lines(3))
    with pytest.raises(UserError, match='task cot_cof is made of .* already'):
        cot.register([a, b])
    cot.register([a])
    with pytest.raises(UserError, match='task cot_cof is made of .* already'):
        cot.register([b])
    (tmp_path / 'none').mkdir()
    with pytest.raises(UserError, match='no file of rows .* in that folder. Set DataConfig.cot'):
        cot.register([str(tmp_path / 'none')])


def test_the_real_sets(shared):
    folder = shared / 'data' / 'flan_v2' / 'cot_data'
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    counts = {path.stem: len(cot.index_of(str(path)).rows) for path in folder.glob('*.tsv')}
    assert counts == {
        'aqua_train': 2728,
        'creak_train': 6915,
        'ecqa_train': 7112,
        'gsm8k_train': 7473,
        'qasc_train': 1084,
        'sensemaking_train': 6070,
        'strategyqa_train': 2061,
    }


@pytest.mark.parametrize(
    'header',
    [
        'answer\tquestion\trationale',
        'Answer\tQuestion\tRationale',
        'target\tinput\trationale',
        'answer\tquestion\texplanation',
    ],
)
def test_a_header_names_the_columns(tmp_path, header):
    path = write(tmp_path / 'com.tsv', [header, 'A\tQ\tR'])
    [row] = cot.open_rows({'train': path, 'validation': path}, 'train', None)
    assert (row['question'], row['answer'], row['rationale']) == ('Q', 'A', 'R')


@pytest.mark.parametrize(
    'row,expected',
    [
        ({'input': 'Q', 'target': 'A', 'rationale': 'R'}, ('Q', 'A', 'R')),
        ({'Question': 'Q', 'Answer': 'A', 'Explanation': None}, ('Q', 'A', '')),
        ({'question': 'Q', 'input': 'other', 'answer': 'A', 'rationale': 'R', 'explanation': 'other'}, ('Q', 'A', 'R')),
    ],
)
def test_other_names_of_fields(row, expected):
    item = cot.parse_row(row, 'f row 1')
    assert (item['question'], item['answer'], item['rationale']) == expected


def test_alpacas_instruction_is_not_dropped():
    with pytest.raises(UserError, match="f row 2: no field 'target'"):
        cot.parse_row({'instruction': 'I', 'input': 'Q', 'output': 'A', 'rationale': 'R'}, 'f row 2')


def test_tables_and_compressed_files_are_read_by_their_columns(tmp_path):
    header = 'rationale\tquestion\tanswer\n'
    (tmp_path / 'cotheader_train.tsv').write_text('\ufeff' + header + ''.join(f'R{i}\tQ{i}\tA{i}\n' for i in range(5)))
    lines = ''.join(json.dumps({'source': f'Q{i}', 'target': f'A{i}', 'rationale': f'R{i}'}) + '\n' for i in range(5))
    (tmp_path / 'cotgzip_train.jsonl.gz').write_bytes(gzip.compress(lines.encode()))
    (tmp_path / 'cotplain_train.tsv.gz').write_bytes(
        gzip.compress(''.join(f'Q{i}\tA{i}\tR{i}\n' for i in range(5)).encode())
    )
    cot.register([str(tmp_path)])
    for name in ('cotheader', 'cotgzip', 'cotplain'):
        suffix = {'cotheader': '.tsv', 'cotgzip': '.jsonl.gz', 'cotplain': '.tsv.gz'}[name]
        paths = {'train': str(tmp_path / f'{name}_train{suffix}')}
        rows = [row for split in ('train', 'validation') for row in cot.open_rows(paths, split, None)]
        found = sorted((row['question'], row['answer'], row['rationale']) for row in rows)
        assert found == [(f'Q{i}', f'A{i}', f'R{i}') for i in range(5)]
        assert f'cot_{name}' in seqio.TaskRegistry.names()
