"""Speed of converting a checkpoint compared with a plain copy of its files, and the memory it takes.

    python -m benchmarks.convert --model=t5_1_1_xl --folder=/tmp/convert

Writes a Hugging Face folder of random numbers in the shape of a packaged model, copies it, and converts it to t5flan,
to T5X and back to Hugging Face, each in its own process. It needs free disk of about three times the model's size.
"""

import argparse
import json
import math
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
    """Writes a Hugging Face folder of random numbers and returns its size in bytes."""
    folder.mkdir(parents=True)
    kind = family_of(model, 'benchmark')
    table, number = table_of(kind), FLOATS[dtype]
    shapes = {names.hf_name(table, shape, layer): names.hf_shape(shape) for shape, layer in names.all_pieces(model)}
    writer = FolderWriter(folder, {name: (shape, number) for name, shape in shapes.items()}, 5 * 10**9)
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.write(name, rng.standard_normal(shape, np.float32).astype(number))
    writer.close()
    (folder / 'config.json').write_text(json.dumps(to_fields(model, kind, dtype, 0, 1)), 'utf-8')
    return sum(file.stat().st_size for file in folder.iterdir())


def timed_copy(source: Path, target: Path) -> float:
    """Seconds that a plain copy takes."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def timed_convert(from_: str, to: str, source: Path, target: Path) -> tuple[float, float]:
    """(seconds, peak memory in GiB) of `t5flan convert` in its own process, including the start of Python."""
    command = [sys.executable, '-m', 't5flan', 'convert', f'--from={from_}', f'--to={to}', str(source), str(target)]
    code = (
        'import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); '
        'print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, '-c', code, *command], check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - start, int(done.stdout) / 2**20


def main() -> None:
    """Prints a line for each conversion."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--model', default='t5_1_1_xl', help='a packaged model')
    parser.add_argument('--dtype', default='float32', choices=FLOATS)
    parser.add_argument('--folder', required=True, help='a new folder; removed afterwards')
    args = parser.parse_args()
    folder = Path(args.folder)
    model = configurables.parse([f'models/{args.model}']).read(ModelConfig)
    try:
        size = make_folder(folder / 'hf', model, args.dtype)
        largest = max(math.prod(shape.one) for shape in names.shapes(model).values()) * FLOATS[args.dtype].itemsize
        print(f'{args.model}, {args.dtype}: {size / 2**30:.2f} GiB, largest array {largest / 2**30:.2f} GiB')
        for from_, to, source, target, keep in (
            ('hf', 't5flan', 'hf', 'own', True),
            ('t5flan', 'hf', 'own', 'back', False),
            ('hf', 't5x', 'hf', 't5x', False),
        ):
            before = timed_copy(folder / source, folder / 'copy')
            seconds, memory = timed_convert(from_, to, folder / source, folder / target)
            if not keep:
                shutil.rmtree(folder / target)
            copy = (before + timed_copy(folder / source, folder / 'copy')) / 2
            speed = f'{seconds:.0f} s, copying {copy:.0f} s, {copy / seconds:.2f} of the speed of copying'
            print(f'{from_} to {to}: {speed}, peak memory {memory:.2f} GiB', flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == '__main__':
    main()
