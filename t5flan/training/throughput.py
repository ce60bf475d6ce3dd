"""Speed and memory of a run: least memory, model FLOPs, utilisation of the chips, tokens per second, time left.

    B batch, T target length, S source length, D emb_dim, N heads, K kv heads, H head_dim, F mlp_dim, V vocabulary

Model FLOPs are two for each multiplication of a matrix product, once forward and twice backward. Recomputation
(rematerialised layers) does not count, so utilisation (MFU) is PaLM's (https://arxiv.org/abs/2204.02311, appendix B):
observed tokens per second over those of the chips at their peak.
"""

import contextlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.config.memory import peak_resident_memory
from t5flan.config.memory import require_memory as require
from t5flan.data.config import DataConfig
from t5flan.errors import UserError
from t5flan.files import cache_folder, write_json
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.sharding import Sharding, create_sharding, memory_left
from t5flan.training.config import OptimizerConfig, RunConfig

# Peak dense bfloat16 TFLOP/s of one JAX device, by a part of its `device_kind`; the first match counts.
# A v4 or v5p chip is one device. A TPU7x chip is two devices, with 2307 TFLOP/s together.
_PEAK_TFLOPS = {'TPU v4': 275.0, 'TPU v5 lite': 197.0, 'TPU v5e': 197.0, 'TPU v5': 459.0, 'TPU v6': 918.0}
_PEAK_TFLOPS |= {'TPU7x': 1153.5, 'A100': 312.0, 'H100': 989.0, 'H200': 989.0}


def device_peak_tflops(device_kind: str) -> float | None:
    """Peak dense bfloat16 TFLOP/s of a device, from `jax.Device.device_kind`; None for an unknown chip.

    >>> device_peak_tflops('TPU v5 lite')
    197.0
    """
    return next((peak for name, peak in _PEAK_TFLOPS.items() if name in device_kind), None)


def peak_tflops(config: MeshConfig, sharding: Sharding, model: ModelConfig) -> float | None:
    """`MeshConfig.peak_tflops`, or else that of this CPU; None on other devices, which `Throughput` looks up."""
    return config.peak_tflops or cpu_peak_tflops(sharding.mesh, model.dtype)


def cpu_peak_tflops(mesh: jax.sharding.Mesh, dtype: str) -> float | None:
    """TFLOP/s of one large product on this CPU, per device of the mesh; None on other devices.

    It is the most that any start on this machine has measured, which the cache folder remembers: a start in which other
    programs keep the processor busy measures less.
    """
    if mesh.devices.flat[0].platform != 'cpu':
        return None
    key = f'{platform.node()} {platform.machine()} {_usable_cpus()} {dtype}'
    path = cache_folder() / 'cpu_peak.json'
    known: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(path.read_text(encoding='utf-8'))
    before = known.get(key, 0.0) if isinstance(known, dict) else 0.0
    peak = _measured_tflops(dtype)
    if isinstance(before, float) and before >= peak:
        peak = before
    else:
        with contextlib.suppress(OSError, UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**(known if isinstance(known, dict) else {}), key: peak})
    return peak / len(mesh.local_devices)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _measured_tflops(dtype: str, size: int = 768) -> float:
    """The best of three products of square matrices: 0.9 GFLOP each, some milliseconds."""
    ones = jnp.ones((size, size), dtype)
    product = jax.jit(lambda x: jnp.matmul(x, x, preferred_element_type=jnp.float32)).lower(ones).compile()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        product(ones).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / min(seconds) / 1e12


def model_flops(config: ModelConfig, shapes: Mapping[str, Sequence[int]]) -> float:
    """FLOPs of one training step of the model, over all devices.

    Attention counts every pair of a query and a key, masked or not, as in PaLM. Embedding is a look-up.

    Args:
        config: the model.
        shapes: shape of each model feature of the global batch: `encoder_input_tokens` [B, S] and
            `decoder_target_tokens` [B, T], or only the latter for a decoder.
    """
    D, N, K, H = config.emb_dim, config.num_heads, config.kv_heads, config.head_dim
    B, T = shapes['decoder_target_tokens']
    pairs = lambda queries, keys: 2 * queries * keys * N * H  # q times k, and probabilities times v
    decoder_layer, encoder_layers = _layer_products(config, T), 0
    if config.architecture == 'encoder_decoder':
        S, encoder = shapes['encoder_input_tokens'][1], config.encoder_config
        decoder_layer += S * 2 * encoder.emb_dim * K * H + pairs(T, S)
        decoder_layer += T * 2 * D * N * H if config.has_cross_attention else 0
        encoder_layers = config.num_encoder_layers * _layer_products(encoder, S)
    layers = encoder_layers + config.num_decoder_layers * decoder_layer
    return 3.0 * 2.0 * B * (layers + T * D * config.vocab_size)


def prefill_flops(config: ModelConfig, rows: int, length: int) -> float:
    """FLOPs of reading prompts and choosing the first token of each: forward only, otherwise as `model_flops`.

    Args:
        config: the model.
        rows: of prompts.
        length: of each.
    """
    D, N, K, H = config.emb_dim, config.num_heads, config.kv_heads, config.head_dim
    if config.architecture == 'decoder_only':
        layers = config.num_decoder_layers * _layer_products(config, length)
    else:
        encoder = config.encoder_config
        first = _layer_products(config, 1) + length * 2 * encoder.emb_dim * K * H + 2 * length * N * H
        first += 2 * D * N * H if config.has_cross_attention else 0
        layers = config.num_encoder_layers * _layer_products(encoder, length) + config.num_decoder_layers * first
    return 2.0 * rows * (layers + D * config.vocab_size)


def decode_flops(config: ModelConfig, rows: int, slots: int, source: int) -> float:
    """FLOPs of one more token in each row: forward only, otherwise as `model_flops`.

    Args:
        config: the model.
        rows: of continuations.
        slots: of the cache; attention counts all of them.
        source: length of the encoder's input; 0 without an encoder.
    """
    D, N, H = config.emb_dim, config.num_heads, config.head_dim
    layer = _layer_products(config, 1) - 2 * N * H + 2 * (slots + source) * N * H
    layer += 2 * D * N * H if config.has_cross_attention else 0
    return 2.0 * rows * (config.num_decoder_layers * layer + D * config.vocab_size)


def _layer_products(config: ModelConfig, T: int) -> int:
    """Multiplications of self-attention and MLP of a layer for T tokens."""
    D, N, K, H, F = config.emb_dim, config.num_heads, config.kv_heads, config.head_dim, config.mlp_dim
    weights = 2 * D * (N + K) * H + (len(config.mlp_activations) + 1) * D * F
    return T * weights + 2 * T * T * N * H


def require_memory(
    model: ModelConfig,
    data: DataConfig,
    run: RunConfig,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    teacher: ModelConfig | None = None,
) -> None:
    """Requires the memory that a run needs at least, whatever the compiler does, before anything is built.

    These are parameters, gradients and optimizer state, the parameters of a teacher, and the hidden states between
    layers, which the backward pass reads with every `remat`.

    Raises:
        UserError: the devices, or the host, have less.
    """
    devices = create_sharding(mesh).mesh
    shards = devices.shape['fsdp'] * devices.shape['tensor']
    base = 2 if run.base_dtype == 'bfloat16' else 4
    trained = 0 if run.adapter is not None or optimizer.freeze else model.kernel_size  # else a part that is not known
    state = 8 if optimizer.name == 'adamw' else (0 if optimizer.factored else 4) + (4 if optimizer.b1 else 0)
    lengths = data.feature_lengths
    inputs, targets = lengths.get('inputs', 0), lengths['targets']
    if model.architecture == 'decoder_only':
        inputs, targets = 0, inputs + targets
    states = inputs * model.num_encoder_layers * model.encoder_config.emb_dim
    states += targets * model.num_decoder_layers * model.emb_dim
    rows = data.batch_size / (devices.size / devices.shape['tensor']) / optimizer.microbatches
    of_device = {
        'parameters': model.kernel_size * base / shards,
        'gradients': 4.0 * trained / shards,
        'optimizer state': float(state) * trained / shards,
        'hidden states': rows * states * model.itemsize,
    }
    if teacher is not None:
        of_device['teacher'] = 4.0 * teacher.kernel_size / shards
    fix = 'Set a smaller model or batch (DataConfig.batch_size, DataConfig.feature_lengths, vocab_size, emb_dim), '
    fix += 'more OptimizerConfig.microbatches, or more devices with MeshConfig.fsdp.'
    host_rows = 4 * 3 * data.batch_size / jax.process_count() * (inputs + targets) * (1 + data.prefetch)
    left, where, on_host = memory_left(list(devices.local_devices))
    require('this run', of_device, left, where, fix)
    require('this run', {'batches': host_rows}, on_host, 'this host', fix)


def peak_memory() -> dict[str, float]:
    """`peak_memory_gib`: the most memory in use so far, on the fullest local device or, on a CPU, in this process."""
    peaks = [(device.memory_stats() or {}).get('peak_bytes_in_use', 0) for device in jax.local_devices()]
    return {'peak_memory_gib': (max(peaks) or peak_resident_memory()) / 2**30}


class Throughput:
    """Tokens, steps and FLOPs per second over the steps since the last reading, and the time left.

    The first reading starts the clock, so compilation is not counted; `pause` excludes saving and evaluating.

        throughput = Throughput(model, batch_size=64, mesh=mesh, peak_tflops=None, total_steps=1000)
        for step, batch in …:
            …
            throughput.count(batch)
            if step % 10 == 0:
                throughput.read()     # {'steps_per_second': 2.1, 'tokens_per_second': 10532.0, …}

    Args:
        model: the model.
        batch_size: rows of the global batch; a host counts its own rows and scales them up.
        mesh: the devices that train.
        peak_tflops: a device's peak TFLOP/s, see also `cpu_peak_tflops`; None looks it up by device kind.
        total_steps: the run's last step.
        clock: returns seconds.
    """

    def __init__(
        self,
        model: ModelConfig,
        batch_size: int,
        mesh: jax.sharding.Mesh,
        peak_tflops: float | None,
        total_steps: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._model, self._batch_size, self._devices = model, batch_size, mesh.size
        self._total_steps, self._clock = total_steps, clock
        self._peak = device_peak_tflops(mesh.devices.flat[0].device_kind) if peak_tflops is None else peak_tflops
        self._since: float | None = None
        self._seconds_per_step: float | None = None
        self._steps = self._tokens = self._flops = 0.0
        self._rates: dict[str, float] = {}

    def count(self, batch: Mapping[str, np.ndarray]) -> None:
        """Counts a step on this host's `batch`, [rows, length] for each model feature."""
        self._steps += 1
        features = [name for name in ('encoder_input_tokens', 'decoder_target_tokens') if name in batch]
        share = batch['decoder_target_tokens'].shape[0] / self._batch_size
        self._tokens += sum(np.count_nonzero(batch[name]) for name in features) / share
        self._flops += model_flops(self._model, {name: (self._batch_size, batch[name].shape[1]) for name in features})

    def read(self) -> dict[str, float]:
        """The rates since the last reading.

        They are `steps_per_second`, `tokens_per_second` (input and target, without padding),
        `tflops_per_second_per_device` (of the model), and `model_flops_utilisation` if the peak is known. Call it when
        the counted steps have finished. Between `pause` and the next step it returns the last rates.
        """
        now = self._clock()
        if self._since is not None and self._steps:
            seconds = max(now - self._since, 1e-9)
            per_step, flops = seconds / self._steps, self._flops / seconds
            previous = self._seconds_per_step
            self._seconds_per_step = per_step if previous is None else 0.7 * previous + 0.3 * per_step
            self._rates = {
                'steps_per_second': 1.0 / per_step,
                'tokens_per_second': self._tokens / seconds,
                'tflops_per_second_per_device': flops / self._devices / 1e12,
            }
            if self._peak is not None:
                self._rates['model_flops_utilisation'] = flops / (self._devices * self._peak * 1e12)
        if self._since is None or self._steps:
            self._restart(now)
        return dict(self._rates)

    def pause(self) -> None:
        """Discards the time since the last reading and the steps counted in it."""
        if self._since is not None:
            self._restart(self._clock())

    def seconds_left(self, step: int) -> float | None:
        """Expected seconds of training until the last step; None before the second reading."""
        return None if self._seconds_per_step is None else (self._total_steps - step) * self._seconds_per_step

    def _restart(self, now: float) -> None:
        self._since, self._steps, self._tokens, self._flops = now, 0.0, 0.0, 0.0
