"""t5flan/moved.py: every old module path leads to the new one, with one warning."""

import importlib
import sys

import pytest

from t5flan.moved import MOVED


@pytest.mark.parametrize('old', MOVED)
def test_old_modules_are_found_where_they_are_now(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f'{old} is now t5flan'):
        module = importlib.import_module(old)
    for home in MOVED[old]:
        new = importlib.import_module(f't5flan.{home}')
        own = [name for name, value in vars(new).items() if getattr(value, '__module__', '') == new.__name__]
        assert own and all(getattr(module, name) is getattr(new, name) for name in own if name[0] != '_')


def test_an_unknown_name_or_module_is_still_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, 't5flan.data.mixing', raising=False)
    with pytest.warns(FutureWarning):
        module = importlib.import_module('t5flan.data.mixing')
    with pytest.raises(AttributeError, match="'t5flan.data.mixing' has no attribute 'nothing'"):
        getattr(module, 'nothing')  # noqa: B009 - the attribute does not exist
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module('t5flan.data.nothing')
