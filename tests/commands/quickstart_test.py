"""t5flan quickstart: the folder that it empties; tests/attacks/buckets.py runs a short one, `make quickstart` all."""

import pytest

from t5flan import quickstart
from t5flan.errors import UserError


def test_an_earlier_or_killed_quickstart_is_replaced_and_other_files_are_not(tmp_path):
    folder = tmp_path / 'quick'
    (folder / 'pretrained').mkdir(parents=True)
    for name in ('vocabulary.model', 'pretrained/config.gin', f'.report.html.{2**22 + 1}-1-00000000.0123abcd.tmp'):
        (folder / name).write_text('x')
    assert list(quickstart._empty_folder(folder).iterdir()) == []
    (folder / 'thesis.txt').write_text('x')
    with pytest.raises(UserError, match=r"has 'thesis.txt', which is not from a quickstart"):
        quickstart._empty_folder(folder)
    assert (folder / 'thesis.txt').exists()
