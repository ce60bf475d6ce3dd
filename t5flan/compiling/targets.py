"""Devices that programs can be compiled for on any machine: TPU slices, GPUs, and simulated devices of a CPU.

Nothing runs on them. `libtpu` (t5flan[compile]) compiles for TPUs. For GPUs, JAX's CUDA plugin and `ptxas` do, without
a GPU or driver: `pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

from t5flan.errors import UserError, did_you_mean
from t5flan.planning.chips import Chip, find_chip

_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
    '1x1x1',
    '2x2x1',
    '2x2x2',
    '2x2x4',
    '2x4x4',
    '4x4x4',
    '4x4x8',
    '4x8x8',
    '8x8x8',
    '8x8x16',
    '8x16x16',
    '16x16x16',
)
SLICES = {'v4': _CUBES, 'v5e': _FLAT, 'v5p': _CUBES, 'v6e': _FLAT, 'tpu7x': _CUBES}
"""Usual slices of each TPU, to suggest one; the compiler decides which there are."""
MOST_CPU_DEVICES = 512


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU, as XLA's compiler needs it described; `shared` are bytes of shared memory."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared: int  # of a multiprocessor
    shared_of_program: int
    architecture: str

    def config(self) -> str:
        """The description, as text of XLA's protocol buffer."""
        return f'''gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
          shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {self.shared_of_program}
          threads_per_core_limit: 2048 core_count: {self.processors} fpus_per_core: 64 block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 2039040000000 l2_cache_size: 41943040
          clock_rate_ghz: 1.41 device_memory_size: 85100068864 registers_per_core_limit: 65536
          registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
        }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{self.name}"'''


GPUS = {
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 233472, 232448, 'sm_90a'),
    'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 167936, 166912, 'sm_80'),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Attributes:
        name: as in --topology.
        chip: the kind of chip; None for a CPU, whose speed and memory are not known.
        slices: slices of this topology, joined by the slower network.
        devices: one for each chip, or two where a chip has two.
    """

    name: str
    chip: Chip | None
    slices: int
    devices: Sequence[jax.Device]


def run_nothing_here(cpu_devices: int = 1) -> None:
    """Makes JAX itself use the CPU. Call it before anything else of JAX.

    Args:
        cpu_devices: simulated devices that the CPU shows, at least.
    """
    # libtpu asks no metadata server which TPU this is, and other processes may load it too.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    jax.config.update('jax_platforms', 'cpu')
    flag = '--xla_force_host_platform_device_count'  # read when JAX first asks for devices
    if cpu_devices > 1 and flag not in os.environ.get('XLA_FLAGS', ''):
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}={cpu_devices}'.strip()


def find_target(topology: str, slices: int = 1) -> Target:
    """The devices of --topology: 'v5p:4x4x4', 'v5e:4x4', 'h100:8', 'cpu:8'.

    Raises:
        UserError: there is no such topology, or no compiler for it is installed.
    """
    kind, _, shape = topology.partition(':')
    if kind == 'cpu' or kind in GPUS:
        return _counted_target(topology, kind, shape, slices)
    if kind not in SLICES:
        kinds = (*SLICES, *GPUS, 'cpu')
        hint = did_you_mean(kind, kinds)
        raise UserError(f'--topology={topology}, expected CHIP:SHAPE with a CHIP of {", ".join(kinds)}{hint}')
    if not re.fullmatch(r'[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}', shape):
        nearest = nearest_slice(kind, shape)
        raise UserError(f'--topology={topology}, expected the chips along each axis of a slice, e.g. {nearest}')
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(f'--topology={topology} needs the TPU compiler. Install it: pip install "t5flan[compile]"')
    _check_version()
    try:
        devices = tpu_devices(topology, slices)
    except jax.errors.JaxRuntimeError as error:
        said = str(error).splitlines()[0].removeprefix('INVALID_ARGUMENT: ')
        hint = f'The nearest slice is {nearest_slice(kind, shape)}.'
        raise UserError(f'--topology={topology} is no slice for the TPU compiler ({said}). {hint}') from None
    return Target(topology, find_chip(kind), slices, devices)


def _check_version() -> None:
    """Requires the libtpu that this JAX names: JAX cannot read the programs of some others."""
    try:
        required, found = importlib.metadata.requires('jax') or [], importlib.metadata.version('libtpu')
    except importlib.metadata.PackageNotFoundError:
        return
    named = [one[1] for line in required if (one := re.match(r'libtpu==([\d.]+\d)', line))]
    if named and not f'{found}.'.startswith(f'{named[0]}.'):
        fix = f'Install it: pip install "jax[tpu]=={jax.__version__}"'
        raise UserError(f'libtpu {found} is installed, but JAX {jax.__version__} works with libtpu {named[0]}. {fix}')


def _counted_target(topology: str, kind: str, shape: str, slices: int) -> Target:
    """GPUs of one machine, or simulated devices of the CPU."""
    if slices != 1:
        raise UserError(f'--slices={slices} is for TPUs, but --topology={topology}. Remove --slices')
    if not re.fullmatch(r'[1-9]\d{0,3}', shape or '1') or (kind == 'cpu' and int(shape or 1) > MOST_CPU_DEVICES):
        most = f' up to {MOST_CPU_DEVICES}' if kind == 'cpu' else ''
        raise UserError(f'--topology={topology}, expected a number of devices{most}, e.g. {kind}:8')
    count = int(shape or 1)
    if kind == 'cpu':
        devices = jax.devices('cpu')
        if len(devices) < count:
            shown = f'JAX shows {len(devices)} devices of this CPU'
            fix = f'Set XLA_FLAGS=--xla_force_host_platform_device_count={count} before Python starts.'
            raise UserError(f'--topology={topology}, but {shown}. {fix}')
        return Target(topology, None, 1, devices[:count])
    if importlib.util.find_spec('jax_plugins') is None or importlib.util.find_spec('jax_plugins.xla_cuda12') is None:
        install = 'pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12'
        raise UserError(f'--topology={topology} needs the CUDA compiler. Install it: {install}')
    return Target(topology, find_chip(kind), 1, gpu_devices(GPUS[kind], count))


def nearest_slice(kind: str, shape: str) -> str:
    """The usual slice of a TPU whose number of chips is nearest to that of a shape which does not exist."""
    chips = math.prod(int(number) for number in re.findall(r'\d{1,6}', shape)) or 1
    distance = lambda one: abs(math.log(math.prod(map(int, one.split('x'))) / chips))
    return f'{kind}:{min(SLICES[kind], key=distance)}'


def gpu_devices(gpu: Gpu, count: int = 1) -> list[jax.Device]:
    """`count` GPUs of one machine."""
    from jax.experimental import topologies

    return topologies.get_topology_desc('', 'cuda', topology=f'1x1x{count}', target_config=gpu.config()).devices


def tpu_devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a TPU slice, as 'v5p:2x2x1', or of several."""
    from jax.experimental import topologies

    options: dict[str, object] = {'num_slices': slices} if slices > 1 else {}
    if topology.startswith('v4'):
        options['chip_config_name'] = 'megacore'  # one device a chip
    if topology.partition(':')[2] in ('1x1', '1x1x1'):
        options['chips_per_host_bounds'] = (1, 1, 1)  # else a host has 2x2
    return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices
