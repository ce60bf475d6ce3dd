"""TPUs and GPUs that programs can be compiled for on any machine; nothing runs on them.

`libtpu` (t5flan[tpu]) compiles for TPUs. For GPUs, JAX's CUDA plugin and `ptxas` do, without a GPU or driver:
`pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`.
"""

import dataclasses
import os

import jax


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


def run_nothing_here() -> None:
    """Makes JAX itself use the CPU. Call it before anything else of JAX."""
    # libtpu asks no metadata server which TPU this is, and other processes may load it too.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    jax.config.update('jax_platforms', 'cpu')


def gpu_devices(gpu: Gpu, count: int = 1) -> list[jax.Device]:
    """`count` GPUs of one machine."""
    from jax.experimental import topologies

    return topologies.get_topology_desc('', 'cuda', topology=f'1x1x{count}', target_config=gpu.config()).devices


def tpu_devices(topology: str) -> list[jax.Device]:
    """The chips of a TPU slice, as 'v5p:2x2x1'."""
    from jax.experimental import topologies

    options = {'chip_config_name': 'megacore'} if topology.startswith('v4') else {}  # one device a chip
    return topologies.get_topology_desc(platform='tpu', topology_name=topology, **options).devices
