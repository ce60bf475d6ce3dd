import pytest

from t5flan.kernels import implementations
from t5flan.kernels.tpu import flash as flash_tpu


@pytest.fixture
def interpreted(monkeypatch):
    """Lets the CPU run the kernels, in blocks of 128, so that short inputs have several."""
    monkeypatch.setitem(implementations.PLATFORMS['flash_tpu'], 'cpu', True)
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: (128, 128))
