"""tasks/flan/collection.py: the published rows become submixtures; missing ones are shared only when asked."""

import gzip
import json

import pyarrow
import pytest
import seqio
from pyarrow import parquet

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.mixture_config import Mixture
from t5flan.data.mixtures import registration
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import files, register_all
from t5flan.tasks.flan import collection
from t5flan.tasks.flan.mixtures import parts, require_complete
from t5flan.tasks.flan.table import load_table

NAMES = ('flan_zs_opt_train', 'flan_fs_noopt_train', 't0_zs_noopt_train', 'niv2_zs_opt_train', 'dialog_zs_opt_train')


def rows(name):
    made = ({'inputs': f'{name} {i}?', 'targets': 'yes', '_template_type': 'zs_opt'} for i in range(60))
    return ''.join(json.dumps(row) + '\n' for row in made)


@pytest.fixture(autouse=True)
def nothing_registered():
    """Removes the tasks that an earlier test registered from another folder."""
    yield
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        for name in [name for name in registry.names() if name.startswith('flan_collection')]:
            registry.remove(name)
            files._registered.pop(name, None)


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


def as_published(folder, release):
    """The files of a release, by the names of its listing on the hub."""
    if release == 'SirNeural/flan_v2':
        parts = [f'flan_fs_opt_train_part{i}' for i in (1, 2, 3)]
        ways = [f'{name}_{way}_train' for name in ('cot', 'dialog', 'niv2') for way in WAYS]
        ways += [*parts, *[f'flan_{way}_train' for way in WAYS if way != 'fs_opt']]
        ways += [f't0_{way}_train' for way in WAYS if way != 'fs_opt']  # which is not there
        for name in ways:
            with gzip.open(folder / f'{name}.jsonl.gz', 'wt') as file:
                file.writelines(json.dumps({'inputs': f'{i}?', 'targets': 'a', 'task': name}) + '\n' for i in range(9))
        return
    names = [f'{name}_{way.replace("_", "")}_data' for name in ('flan', 't0') for way in WAYS]
    names += [f'{name}_{way}_data' for name in ('cot', 'dialog', 'niv2') for way in ('zsopt', 'fsopt')]
    if release == 'conceptofmind':
        names = [f'{name}_submix_original/data' for name in ('flan2021', 't0', 'niv2', 'cot', 'dialog')]
    marks = '_' if release == 'Open-Orca/FLAN' else ''
    for name in names:
        row = {'inputs': '?', 'targets': 'a'} | {f'{marks}{key}': 'x' for key in ('template_type', 'task_name')}
        (folder / name).mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist([row] * 9), folder / name / 'part.0.parquet')
        (folder / name.partition('/')[0] / 'README.md').write_text('about')


WAYS = ('zs_opt', 'zs_noopt', 'fs_opt', 'fs_noopt')


@pytest.mark.parametrize('release, tasks', [('SirNeural/flan_v2', 19), ('Open-Orca/FLAN', 14), ('conceptofmind', 5)])
def test_the_names_of_the_releases(tmp_path, release, tasks):
    as_published(tmp_path, release)
    assert sum(map(len, collection.find(str(tmp_path)).values())) == tasks
    register_all(config(tmp_path))
    rates = {task.name.removeprefix('flan_collection_') for task, _ in tasks_and_rates(find_mixture('flan_collection'))}
    way = 'all' if release == 'conceptofmind' else 'zs_opt'
    assert {f'{name}_{way}' for name in ('flan2021', 't0_sf', 'niv2', 'cot', 'dialog')} <= rates
    assert 'cot_zs_noopt' not in rates, 'as in run_example.py'
    made = eval_examples(config(tmp_path, f'flan_collection_cot_{way}'), ByteVocabulary(100))
    assert made[0]['targets_pretokenized'] == 'a'


def test_pieces_of_one_compressed_file_are_joined_by_the_user(tmp_path):
    whole = gzip.compress(rows('flan').encode())
    for i in (1, 2):
        piece = whole[: len(whole) // 2] if i == 1 else whole[len(whole) // 2 :]
        (tmp_path / f'flan_fs_opt_train_part{i}.jsonl.gz').write_bytes(piece)
    with pytest.raises(UserError, match=r'part2.jsonl.gz is a piece .* cat .*_part\* > .*/flan_fs_opt_train.jsonl.gz$'):
        register_all(config(tmp_path, 'flan_collection_flan2021'))
    (tmp_path / 'flan_fs_opt_train.jsonl.gz').write_bytes(whole)
    register_all(config(tmp_path, 'flan_collection_flan2021'))
    assert len(eval_examples(config(tmp_path, 'flan_collection_flan2021_fs_opt'), ByteVocabulary(100))) > 50


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


@pytest.fixture
def without_files(monkeypatch):
    """No mixtures of files, whatever other tests of this process have registered."""
    for name in ('natural_instructions', 'cot'):
        monkeypatch.delitem(seqio.MixtureRegistry._REGISTRY, name, raising=False)


def test_a_run_on_a_part_of_flan_is_asked_for(without_files):
    line = r'flan2022 lacks .*cot \(5%\): no files are given. Set .*DataConfig.cot, or DataConfig.flan_redistribute'
    with pytest.raises(UserError, match=line):
        require_complete(['practice', 'flan2022'], False)
    require_complete(['practice', 'flan2022'], True)
    require_complete(['practice', 't0_sf'], False)


@pytest.mark.parametrize('parts', [
    {'rates': {'flan2022': 0.9, 'practice': 0.1}},
    {'by_examples': ('practice', 'flan2022'), 'cap': 100},
    {'by_examples': ('flan2022',), 'keep_rates': True, 'exclude': ('flan2021_snli',)},
    {'rates': {'inner': 1.0}},
])  # fmt: skip
def test_a_mixture_built_on_flan_is_guarded_too(parts, without_files):
    inner = Mixture('inner', rates={'flan2022_paper': 1.0})
    mixtures = (Mixture('outer', **parts), *[inner] * ('inner' in parts.get('rates', ())))
    used = registration.names_inside(['outer'], mixtures)
    with pytest.raises(UserError, match=r'flan2022\w* lacks .*DataConfig.flan_redistribute'):
        require_complete(used, False)
    require_complete(used, True)
    require_complete(registration.names_inside(['practice'], mixtures), False)


def test_a_mixture_of_seqio_and_one_of_the_collection_are_guarded(tmp_path):
    register_all()
    seqio.MixtureRegistry.add('flan_collection_outer', [('flan2022', 1.0)])
    assert 'flan2022' in registration.names_inside(['flan_collection_outer'], ())
    (tmp_path / 't0_fs_opt.jsonl').write_text(rows('t0'))
    outer = Mixture('flan_collection_gin', rates={'flan_collection': 1.0})
    with pytest.raises(UserError, match='lacks flan2021'):
        register_all(config(tmp_path, 'flan_collection_gin', mixtures=(outer,)))
    register_all(config(tmp_path, 'flan_collection_gin', mixtures=(outer,), flan_redistribute=True))
    registration.register((Mixture('unrelated', rates={'practice': 1.0}),))


def test_the_parts_of_a_published_mixture():
    register_all()
    found = parts('flan2022_paper')
    assert set(found) == {'muffin', 't0_sf', 'niv2', 'cot'} and parts('flan_collection') == {}
    for name in ('muffin', 't0_sf'):
        here = [row.task for row in load_table().of(name)]
        assert set(here) == set(found[name]['here']) and all(found[name]['missing'].values())
        assert found[name]['tasks']['here'] + len(found[name]['tasks']['missing']) == found[name]['tasks']['published']
    assert found['t0_sf']['tasks']['here'] == 191 and found['muffin']['data_sets'] > 70
    assert sum(len(part['missing']) for part in found.values()) >= len(load_table().left_out)
