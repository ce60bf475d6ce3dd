"""tasks/flan/collection.py: the published rows become submixtures; missing ones are shared only when asked."""

import gzip
import json

import pytest

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import register_all
from t5flan.tasks.flan import collection
from t5flan.tasks.flan.mixtures import parts, require_complete
from t5flan.tasks.flan.table import load_table

NAMES = ('flan_zs_opt_train', 'flan_fs_noopt_train', 't0_zs_noopt_train', 'niv2_zs_opt_train', 'dialog_zs_opt_train')


def rows(name):
    made = ({'inputs': f'{name} {i}?', 'targets': 'yes', '_template_type': 'zs_opt'} for i in range(60))
    return ''.join(json.dumps(row) + '\n' for row in made)


@pytest.fixture
def folder(tmp_path):
    for name in NAMES[1:]:
        (tmp_path / f'{name}.jsonl').write_text(rows(name))
    with gzip.open(tmp_path / f'{NAMES[0]}.jsonl.gz', 'wt') as file:
        file.write(rows(NAMES[0]))
    (tmp_path / 'README.md').write_text('about')
    (tmp_path / 'cot_zs_noopt_data').mkdir()
    (tmp_path / 'cot_zs_noopt_data' / '0.jsonl').write_text(rows('cot'))
    return tmp_path


def config(folder, mixture='flan_collection', **options):
    lengths = {'inputs': 64, 'targets': 16}
    return DataConfig(mixture, 8, lengths, 'bytes', flan_collection=str(folder), **options)


def test_rows_are_submixtures_with_the_published_rates(folder):
    data = config(folder)
    register_all(data)
    rates = {task.name: rate for task, rate in tasks_and_rates(find_mixture('flan_collection'))}
    total = sum(rates.values())
    shares = {name: rate / total for name, rate in rates.items()}
    assert shares['flan_collection_flan2021_zs_opt'] == pytest.approx(0.2), 'half of 0.4'
    assert shares['flan_collection_t0_sf_zs_noopt'] == pytest.approx(0.32)
    assert shares['flan_collection_cot_zs_noopt'] == pytest.approx(0.05)
    made = eval_examples(config(folder, 'flan_collection_flan2021_zs_opt'), ByteVocabulary(100))
    assert 55 <= len(made) < 60 and made[0]['inputs_pretokenized'].startswith('flan_zs_opt_train')


def test_a_missing_submixture_stops_unless_rates_are_shared(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp('some')
    for name in ('t0_fs_opt', 'dialog_fs_opt_part1', 'dialog_fs_opt_part2'):
        (other / f'{name}.jsonl').write_text(rows(name))
    with pytest.raises(UserError, match=r'lacks flan2021 \(40%\), niv2 \(20%\), cot \(5%\).*flan_redistribute = True'):
        register_all(config(other))
    register_all(config(other, 'flan_collection_t0_sf'))
    register_all(config(other, flan_redistribute=True))
    rates = {task.name: rate for task, rate in tasks_and_rates(find_mixture('flan_collection'))}
    assert rates['flan_collection_t0_sf_fs_opt'] / sum(rates.values()) == pytest.approx(0.32 / 0.35)
    assert len(eval_examples(config(other, 'flan_collection_dialog_fs_opt'), ByteVocabulary(100))) > 110, 'both parts'
    for wrong in (other / 'none', other.parent):
        with pytest.raises(UserError, match='no file such as flan_zs_opt_train.jsonl.gz'):
            collection.find(str(wrong))
    with pytest.raises(UserError, match='DataConfig.tfds_data_dir=.*no such folder'):
        register_all(config(other, 'flan_collection_t0_sf', tfds_data_dir=str(other / 'none')))


def test_a_run_on_a_part_of_flan_is_asked_for():
    line = r'flan2022 lacks .*cot \(5%\): no files are given. Set .*DataConfig.cot, or DataConfig.flan_redistribute'
    with pytest.raises(UserError, match=line):
        require_complete(['practice', 'flan2022'], False)
    require_complete(['practice', 'flan2022'], True)
    require_complete(['practice', 't0_sf'], False)


def test_the_parts_of_a_published_mixture():
    found = parts('flan2022_paper')
    assert set(found) == {'muffin', 't0_sf', 'niv2', 'cot'} and parts('flan_collection') == {}
    for name in ('muffin', 't0_sf'):
        assert len(found[name]['here']) + len(found[name]['missing']) == found[name]['published']
    assert len(found['t0_sf']['missing']) == 14 and all(found['t0_sf']['missing'].values())
    assert sum(len(part['missing']) for part in found.values()) >= len(load_table().left_out)
