"""t5flan/adapters/config.py: a method is found by the name of its file, which is imported when it is named."""

import dataclasses
import subprocess
import sys

import pytest

from t5flan import configurables
from t5flan.adapters.config import METHODS, Adapter
from t5flan.errors import UsageError


def test_every_file_holds_the_method_of_its_name():
    assert {'Lora', 'Dora', 'Ia3', 'PromptTuning', 'PrefixTuning'} <= set(METHODS)
    for name, kind in METHODS.items():
        assert issubclass(kind, Adapter) and dataclasses.is_dataclass(kind) and kind.__name__ == name
        assert configurables.CONFIGURABLES[name] is kind
        assert dataclasses.asdict(kind()), 'a method has defaults for its settings'


def test_only_a_named_method_is_imported():
    code = (
        "import sys; from t5flan import configurables; 'Ia3' in configurables.CONFIGURABLES;"
        "print('jax' in sys.modules, end=' ');"
        "settings = configurables.parse([], ['RunConfig.steps=1', 'RunConfig.adapter=@Ia3()', 'Ia3.targets=[]']);"
        "print(settings.read(configurables.CONFIGURABLES['RunConfig']).adapter.targets, end=' ');"
        "print([name for name in ('ia3', 'lora') if f't5flan.adapters.methods.{name}' in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False () ['ia3']"


@pytest.mark.parametrize(
    ('binding', 'words'),
    [
        ('RunConfig.adapter=@Loar()', r'there is no @Loar: did you mean @Lora\(\)\?'),
        ('Loar.rank=3', r'there is no setting Loar.rank: did you mean Lora.rank\?'),
        ('Lora.rnak=3', r'there is no setting Lora.rnak: did you mean Lora.rank\?'),
    ],
)
def test_a_wrong_name_is_reported_with_the_nearest(binding, words):
    with pytest.raises(UsageError, match=words):
        configurables.parse([], [binding])


def test_another_type_is_not_an_adapter():
    settings = configurables.parse([], ['RunConfig.steps=1', 'RunConfig.adapter=3'])
    with pytest.raises(UsageError, match=r'given 3 \(int\), expected an adapter such as @Lora\(\) or None'):
        settings.read(configurables.CONFIGURABLES['RunConfig'])
