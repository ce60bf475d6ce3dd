"""How fast a checkpoint is converted beside a plain copy of its files, and in how much memory.

    python -m benchmarks.convert --model=t5_1_1_xl --folder=/tmp/convert

Writes a Hugging Face folder of random numbers in the shape of a packaged model, copies it, and converts it to t5flan, to T5X
and back to Hugging Face, each in a process of its own. It wants about three times the model's size of free disk.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from t5flan import configurables
from t5flan.conversion import names
from t5flan.conversion.checkpoint import FLOATS
from t5flan.conversion.huggingface_config import family_of, table_of, to_fields
from t5flan.conversion.safetensors_files import FolderWriter
from t5flan.models.config import ModelConfig


def make_folder(folder: Path, model: ModelConfig, dtype: str) -> int:
    """A Hugging Face folder of random numbers; gives its bytes."""
    folder.mkdir(parents=True)
    kind = family_of(model, 'benchmark')
    table, kept = table_of(kind), FLOATS[dtype]
    arrays = {
        names.hf_name(table, shape, layer): (names.hf_shape(shape), kept) for shape, layer in names.all_pieces(model)
    }
    writer, rng = FolderWriter(folder, arrays, 5 * 10**9), np.random.default_rng(0)
    for name, (shape, _) in arrays.items():
        writer.write(name, rng.standard_normal(shape, np.float32).astype(kept))
    writer.close()
    (folder / 'config.json').write_text(json.dumps(to_fields(model, kind, dtype, 0, 1)), 'utf-8')
    return sum(file.stat().st_size for file in folder.iterdir())


def timed_copy(source: Path, target: Path) -> float:
    """Seconds of a plain copy."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def timed_convert(form: str, to: str, source: Path, target: Path) -> tuple[float, float]:
    """(seconds, GiB of memory at most) of `t5flan convert` in its own process, Python's start included."""
    command = [sys.executable, '-m', 't5flan', 'convert', f'--from={form}', f'--to={to}', str(source), str(target)]
    code = (
        'import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); '
        'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code, *command], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout) / 2**20


def main() -> None:
    """Prints a line for each direction."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='t5_1_1_xl', help='a packaged model')
    parser.add_argument('--dtype', default='float32', choices=FLOATS)
    parser.add_argument('--folder', required=True, help='a new folder; removed afterwards')
    args = parser.parse_args()
    folder = Path(args.folder)
    model = configurables.parse([f'models/{args.model}']).read(ModelConfig)
    try:
        size = make_folder(folder / 'hf', model, args.dtype)
        largest = max(int(np.prod(shape.one)) for shape in names.shapes(model).values()) * FLOATS[args.dtype].itemsize
        print(
            f'{args.model}, {args.dtype}: {size / 2**30:.2f} GiB, the largest array of the source {largest / 2**30:.2f} GiB'
        )
        for form, to, source, target, keep in (
            ('hf', 't5flan', 'hf', 'own', True),
            ('t5flan', 'hf', 'own', 'back', False),
            ('hf', 't5x', 'hf', 't5x', False),
        ):
            before = timed_copy(folder / source, folder / 'copy')
            seconds, memory = timed_convert(form, to, folder / source, folder / target)
            if not keep:
                shutil.rmtree(folder / target)
            copy = (before + timed_copy(folder / source, folder / 'copy')) / 2
            print(
                f'{form} to {to}: {seconds:.0f} s, copies before and after {copy:.0f} s, {copy / seconds:.2f} of copying speed, '
                f'memory {memory:.2f} GiB at most',
                flush=True,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
