"""How long a save stalls training, and how fast a checkpoint is restored beside plain reads of its files.

    python -m benchmarks.checkpoint                               20 million parameters, on this machine's disk
    python -m benchmarks.checkpoint --parameters=500e6 --folder=/mnt/disk

A save stalls training by what some steps and the save at their beginning take more than the same steps without one: the
call itself, which copies the arrays off the devices, and the slower steps while a thread writes them. Both kinds take
turns. Before a restore or a read, the files are dropped from the page cache where the system allows it.
"""

import argparse
import concurrent.futures
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.train_step import as_a_command_does
from t5flan import sharding as sharding_lib
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.planning.cost import count_parameters
from t5flan.training import checkpoints
from t5flan.training.config import CheckpointConfig, LossConfig, OptimizerConfig, RunConfig
from t5flan.training.step import Trainer

_BLOCK = 2**23


def sized_model(parameters: float) -> ModelConfig:
    """A decoder with about so many parameters: 12 layers, MLPs of four times the width, heads of 64."""

    def of(heads: int) -> ModelConfig:
        return ModelConfig(
            architecture='decoder_only',
            vocab_size=32000,
            emb_dim=64 * heads,
            num_heads=heads,
            head_dim=64,
            mlp_dim=256 * heads,
            num_decoder_layers=12,
            tie_embeddings=True,
            dtype='float32' if jax.default_backend() == 'cpu' else 'bfloat16',
        )

    return min(map(of, range(1, 129)), key=lambda config: abs(count_parameters(config) - parameters))


@contextlib.contextmanager
def training(
    model: ModelConfig, rows: int, length: int, mesh: MeshConfig, optimizer: str
) -> Iterator[tuple[Trainer, Callable[[], Any]]]:
    """The trainer of a model, and a function that takes a step to its end and returns the state."""
    sharding = sharding_lib.create_sharding(mesh)
    tokens = np.random.default_rng(0).integers(3, model.vocab_size, (rows, length), dtype=np.int32)
    batch = {'decoder_target_tokens': tokens, 'decoder_input_tokens': np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]}
    batch['decoder_loss_weights'] = np.ones(tokens.shape, np.float32)
    with sharding_lib.use(sharding):
        trainer = Trainer(model, OptimizerConfig(name=optimizer), LossConfig(), RunConfig(steps=10**6), sharding)
        placed, held = sharding_lib.put_batch(sharding, batch, rows), [trainer.new_state()]

        def step() -> Any:
            held[0], metrics = trainer.train_step(held[0], placed)
            jax.block_until_ready((held[0], metrics))
            return held[0]

        yield trainer, step


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_saves(step: Callable[[], Any], manager: checkpoints.CheckpointManager, args: argparse.Namespace) -> None:
    """Prints what a save costs."""
    plain, stalls, calls, writes = [], [], [], []
    for _ in range(args.repeats):
        plain.append(seconds(lambda: [step() for _ in range(args.steps)]) / args.steps)
        state = step()
        started = time.perf_counter()
        manager.save(state, {'seed': 0, 'position': {}})
        calls.append(time.perf_counter() - started)
        slower = seconds(lambda: [step() for _ in range(args.steps)])
        manager.wait()
        writes.append(time.perf_counter() - started)
        plain.append(seconds(lambda: [step() for _ in range(args.steps)]) / args.steps)
        stalls.append(calls[-1] + slower - args.steps * statistics.mean(plain[-2:]))
        print(f'save {len(calls)}: the call takes {calls[-1]:.3f} s, the stall is {stalls[-1]:.3f} s', flush=True)
    one, call, stall, write = map(statistics.median, (plain, calls, stalls, writes))
    print(f'a step takes {one:.3f} s; the call of a save {call:.3f} s ({100 * call / one:.1f} % of a step)')
    print(f'a save and {args.steps} steps take {stall:.3f} s more than the steps alone: a stall of')
    print(f'{100 * stall / one:.1f} % of a step; the checkpoint is complete {write:.2f} s after the call')


def files_of(folder: Path) -> list[Path]:
    """All files in a folder."""
    return [path for path in sorted(folder.rglob('*')) if path.is_file()]


def drop_from_cache(files: list[Path]) -> None:
    """Asks the system to forget the files, which then come from the disk."""
    if not hasattr(os, 'posix_fadvise'):
        return
    for path in files:
        with path.open('rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_all(files: list[Path], threads: int) -> int:
    """Reads files in blocks, several at a time; returns their bytes."""

    def read(path: Path) -> int:
        total = 0
        with path.open('rb', buffering=0) as file:
            while block := file.read(_BLOCK):
                total += len(block)
        return total

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, files))


def measure_restores(trainer: Trainer, folder: str, args: argparse.Namespace) -> None:
    """Prints the bandwidth of restoring the newest step, with and without checking it, and of reading its files."""
    step = checkpoints.latest_step(folder)
    assert step is not None, folder
    files = files_of(Path(folder) / checkpoints.CHECKPOINTS / str(step))
    size = sum(path.stat().st_size for path in files)
    restore = lambda verify: jax.block_until_ready(
        checkpoints.restore_state(folder, step, trainer.abstract_state, verify=verify)[0]
    )
    runs: dict[str, Callable[[], object]] = {
        'plain reads': lambda: read_all(files, args.threads),
        'restore': lambda: restore(False),
        'restore and check': lambda: restore(True),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(args.repeats):
        for name, run in runs.items():
            drop_from_cache(files)
            found[name].append(seconds(run))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print(f'a checkpoint of {size / 2**30:.2f} GiB in {len(files)} files:')
    for name, value in medians.items():
        ratio = medians['plain reads'] / value
        print(f'  {name}: {value:.2f} s, {size / value / 1e9:.2f} GB/s, {ratio:.2f} of the bandwidth of plain reads')


def main() -> None:
    """Trains, saves and restores a model of random tokens."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--parameters', type=float, default=20e6, help='of the model (default: %(default)g)')
    parser.add_argument('--rows', type=int, default=2, help='of the batch (default: %(default)s)')
    parser.add_argument('--length', type=int, default=128, help='of a row (default: %(default)s)')
    parser.add_argument('--steps', type=int, default=4, help='between two measurements (default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=3, help='of each measurement (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=8, help='of the plain reads (default: %(default)s)')
    parser.add_argument('--optimizer', default='adafactor', help='OptimizerConfig.name (default: %(default)s)')
    parser.add_argument('--fsdp', type=int, default=1, help='MeshConfig.fsdp (default: %(default)s)')
    parser.add_argument('--folder', help='where the checkpoints are written for a while (default: a temporary folder)')
    args = parser.parse_args()
    as_a_command_does()
    model = sized_model(args.parameters)
    where = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    print(f'{count_parameters(model) / 1e6:.0f} million parameters on {where}')
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        mesh = MeshConfig(data=-1, fsdp=args.fsdp)
        with training(model, args.rows, args.length, mesh, args.optimizer) as (trainer, step):
            for _ in range(2):
                step()
            checkpoints.Description(model, 'causal_lm', {}, {'fingerprint': ''}).write(folder)
            manager = checkpoints.CheckpointManager(folder, CheckpointConfig(keep=1))
            measure_saves(step, manager, args)
            manager.close()
            measure_restores(trainer, folder, args)


if __name__ == '__main__':
    main()
