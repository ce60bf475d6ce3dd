"""tasks/flan/published.py: the published tasks are counted, and each missing one has a reason."""

import collections
import csv

import pytest

from t5flan.tasks.flan.published import counted, published_tasks
from t5flan.tasks.flan.table import load_table

SUBMIXTURES = load_table().submixtures


def test_the_numbers_are_those_of_the_paper_and_of_the_file():
    found = {name: counted(SUBMIXTURES[name], ()) for name in ('muffin', 't0_sf', 'niv2', 'cot')}
    assert {name: part['published'] for name, part in found.items()} == {
        'muffin': 80, 't0_sf': 193, 'niv2': 1556, 'cot': 9,  # the paper has 1,554 of Natural Instructions
    }  # fmt: skip
    assert sum(part['published_rows'] for part in found.values()) == 1945
    for part in found.values():
        assert part['here'] == 0 and all(part['missing'].values()), 'every missing one has a reason'


def test_the_list_is_that_of_the_release(shared):
    path = shared / 'data' / 'flan_v2' / 'flan_collection_info.csv'
    if not path.is_file():
        pytest.skip(f'no {path}')
    with path.open(encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    by_prompt = {'T0': 't0_sf', 'NIv2': 'niv2'}
    by_set = {'FLAN': 'flan2021', 'FLAN/T0': 'flan2021', 'CoT': 'cot', 'Dialog': 'dialog'}
    by_set |= {'Program Synthesis': 'program_synthesis'}
    found = collections.defaultdict(collections.Counter)
    for row in rows:
        source = row['Source']
        name = row['Specific Task Category'] if source in by_prompt else row['Dataset']
        found[by_prompt.get(source) or by_set[source]][name] += 1
    assert {name: dict(tasks) for name, tasks in found.items()} == published_tasks()


def test_rows_of_the_table_stand_for_published_tasks_once():
    table = load_table()
    for name in ('flan2021', 't0_sf', 'dialog', 'program_synthesis'):
        rows = [row for row in (*table.datasets, *table.left_out) if row.submixture == name]
        stand_for = collections.Counter(
            task for row in rows for task in (row.published if row.published or not row.name else (row.name,))
        )
        assert set(stand_for) - {'mnli_mismatched', 'wsc273'} == set(published_tasks()[name]) - {'mnli_mismatched'}
        assert max(stand_for.values()) == 1


def test_all_but_these_are_here():
    lost = {}
    for name in ('flan2021', 't0_sf', 'dialog', 'program_synthesis'):
        part = counted(SUBMIXTURES[name], [row.task for row in load_table().of(name)])
        lost |= part['missing']
    assert set(lost) == {
        'trivia_qa_wiki_missing', 'ropes_plain_no_background', 'ropes_prompt_bottom_no_hint',
        'dr_repair_error_comments', 'dr_repair_line_numbers', 'dr_repair_no_errors', 'dr_repair_plain_code',
    }  # fmt: skip
    part = counted(SUBMIXTURES['muffin'], [row.task for row in load_table().of('muffin')])
    assert part['here'] == 75 and 'the released code has no task' in part['missing']['trivia_qa_wiki_missing']


def test_tasks_of_files_are_matched_by_name():
    names = ['ni_task067_abductivenli_answer_generation', 'ni_mine']
    part = counted(SUBMIXTURES['niv2'], names)
    assert part['here'] == 1 and len(part['missing']) == 1555
    assert set(part['missing'].values()) == {'it is not among the files of DataConfig.natural_instructions'}
    part = counted(SUBMIXTURES['cot'], ['cot_gsm8k', 'cot_aqua', 'cot_mine'])
    assert (part['here'], part['here_rows'], part['published_rows']) == (2, 8, 36)
    assert 'stream_esnli' in part['missing'] and 'DataConfig.cot' in part['missing']['stream_esnli']


def test_a_skipped_task_is_missing():
    rows = [row.task for row in load_table().of('flan2021') if row.name != 'snli']
    assert counted(SUBMIXTURES['flan2021'], rows)['missing']['snli'] == 'flan2021_snli is skipped'
