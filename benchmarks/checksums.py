"""What the checksums of a checkpoint cost, in CPU seconds: as a share of a save, and to check a step.

python -m benchmarks.checksums --megabytes=512
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp

from t5flan.files import direct
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints
from t5flan.training.checkpoints import shards, whole
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState

REPEATS = 5


def measured(run: Callable[[], object]) -> float:
    """CPU seconds of a call, over all threads."""
    before = time.process_time()
    run()
    return time.process_time() - before


def main() -> None:
    """Saves a state of random float32 numbers without and with checksums, in turns, and checks them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--megabytes', type=int, default=512)
    arguments = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 8)
    rows = arguments.megabytes * 2**20 // (4 * 8 * 2048)
    model = {f'kernel_{i}': 0.02 * jax.random.normal(key, (rows, 2048)) for i, key in enumerate(keys)}
    jax.block_until_ready(model)
    config = ModelConfig(
        architecture='decoder_only', vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_decoder_layers=1
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.Description(config, 'causal_lm', {}, {'fingerprint': ''}).write(folder)
        manager = checkpoints.CheckpointManager(folder, CheckpointConfig(keep=1))

        def save(step: int) -> None:
            state = TrainState(step=jnp.int32(step), model=model, opt_state={'count': jnp.zeros(1)})
            manager.save(state, {'seed': 0, 'position': {}})
            manager.wait()

        without, total = 0.0, 0.0
        for turn in range(REPEATS):
            with (
                mock.patch.object(whole, 'write_checksums'),
                mock.patch.object(shards, '_write_file', lambda path, content: direct.write(path, content) or ''),
            ):
                without += measured(lambda turn=turn: save(2 * turn)) / REPEATS
            total += measured(lambda turn=turn: save(2 * turn + 1)) / REPEATS
        path = Path(folder) / 'checkpoints' / f'{2 * REPEATS - 1}'
        size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
        check = sum(measured(lambda: whole.check_step(folder, 2 * REPEATS - 1)) for _ in range(REPEATS)) / REPEATS
        manager.close()
    print(
        f'a checkpoint of {size / 2**20:.0f} MB: {without:.3f} CPU seconds to save, {total - without:.3f} more for its'
    )
    print(f'checksums ({100 * (total / without - 1):.1f} %), {check:.3f} to check them')


if __name__ == '__main__':
    main()
