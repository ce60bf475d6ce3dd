"""Memory of a TPU chip in a training step of long rows, by mesh, from the TPU compiler and without a TPU.

    python benchmarks/long_rows.py --meshes fsdp=16,context=4         # 16 rows of (16384, 256), T5 XXL, 64 chips
    python benchmarks/long_rows.py --topology=v5e:2x2 --model=models/t5_1_1_small --rows=4 --inputs=8192 \
        --meshes fsdp=4 fsdp=2,context=2 fsdp=1,context=4

For each mesh prints a chip's peak memory and the temporaries in it, or that the program does not fit. A mesh must use
all chips of the topology, and its fsdp axis must divide the rows. Needs `libtpu` (t5flan[tpu]); about four minutes for
a mesh of T5 XXL on two CPU cores.
"""

import argparse
import time

import jax

from t5flan import configurables
from t5flan import sharding as sharding_lib
from t5flan.compiling.step import trace_step
from t5flan.compiling.targets import run_nothing_here, tpu_devices
from t5flan.data.config import DataConfig
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig


def compile_step(model: ModelConfig, sharding: sharding_lib.Sharding, rows: int, inputs: int, targets: int):
    """The training step of packed rows, compiled for the mesh's devices."""
    lengths = {'inputs': inputs, 'targets': targets}
    data = DataConfig('-', rows, lengths, 'bytes')
    settings = {'model': model, 'data': data, 'optimizer': OptimizerConfig(), 'loss': LossConfig()}
    with sharding_lib.use(sharding):
        return trace_step(settings | {'run': RunConfig(steps=1000)}, sharding)[0].lower().compile()


def parse_mesh(text: str) -> MeshConfig:
    """'fsdp=16,context=4' -> MeshConfig(data=1, fsdp=16, context=4)."""
    return MeshConfig(**{'data': 1} | {name: int(size) for name, size in (part.split('=') for part in text.split(','))})


def main() -> None:
    """Prints a line for each mesh."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--topology', default='v5p:4x4x4')
    parser.add_argument('--model', default='models/t5_1_1_xxl')
    parser.add_argument('--meshes', nargs='+', default=['fsdp=16,context=4'], metavar='AXIS=SIZE,…')
    parser.add_argument('--rows', type=int, default=16)
    parser.add_argument('--inputs', type=int, default=16384)
    parser.add_argument('--targets', type=int, default=256)
    parser.add_argument('--remat', default='minimal')
    args = parser.parse_args()
    run_nothing_here()
    devices = tpu_devices(args.topology)
    settings = ["ModelConfig.dtype='bfloat16'", f"ModelConfig.remat='{args.remat}'"]
    model = configurables.parse([args.model], settings).read(ModelConfig)
    for text in args.meshes:
        start = time.perf_counter()
        sharding = sharding_lib.create_sharding(parse_mesh(text), devices)
        try:
            memory = compile_step(model, sharding, args.rows, args.inputs, args.targets).memory_analysis()
            peak, temporary = memory.peak_memory_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
            result = f'peak {peak:.2f} GiB a chip, temporaries {temporary:.2f} GiB'
        except jax.errors.JaxRuntimeError as error:
            result = f'does not compile: {str(error).splitlines()[0]}'
        rows, seconds = f'{args.rows} x ({args.inputs}, {args.targets})', time.perf_counter() - start
        print(f'{args.topology} {rows} {text}: {result} ({seconds:.0f} s)', flush=True)


if __name__ == '__main__':
    main()
