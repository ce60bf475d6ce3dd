"""The device mesh as settings. Standard library only; `sharding.py` builds the mesh."""

import dataclasses

from t5flan.config.checks import is_count, is_number, require

MESH_AXES = ('data', 'fsdp', 'context', 'tensor')
"""The mesh axes, outermost first."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out: a mesh `data` x `fsdp` x `context` x `tensor`.

    Attributes:
        data: copies of the model, each with its share of the batch; -1 = all devices that the other axes leave.
        fsdp: devices over which parameters and optimizer state (and the batch) are divided.
        tensor: devices over which heads, MLP and vocabulary are divided.
        context: devices over which every row is divided along its length, for rows that are too long for one device; divides
            the lengths of `DataConfig.feature_lengths` (and their sum, of a decoder-only model).
        rules: pairs (logical axis, mesh axis or axes or None) that go before `sharding.py`'s own table.
        peak_tflops: a device's peak dense TFLOP/s, for utilisation on a chip that `throughput.py` does not list (a CPU).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    rules: tuple = ()
    peak_tflops: float | None = None

    def __post_init__(self):
        for axis in MESH_AXES:
            size = getattr(self, axis)
            require(
                is_count(size, 1) or size == -1,
                f'MeshConfig.{axis}',
                size,
                'a count of devices, or -1 for all that the other axes leave',
            )
        require(
            sum(getattr(self, axis) == -1 for axis in MESH_AXES) <= 1,
            'MeshConfig.data',
            tuple(getattr(self, axis) for axis in MESH_AXES),
            f'at most one of {", ".join(MESH_AXES)} to be -1',
        )
        require(
            isinstance(self.rules, (tuple, list))
            and all(
                isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str) for rule in self.rules
            ),
            'MeshConfig.rules',
            self.rules,
            "pairs of a logical axis and a mesh axis, as [('embed', 'fsdp')]",
        )
        object.__setattr__(
            self, 'rules', tuple((name, tuple(axis) if isinstance(axis, list) else axis) for name, axis in self.rules)
        )
        require(
            self.peak_tflops is None or (is_number(self.peak_tflops) and self.peak_tflops > 0),
            'MeshConfig.peak_tflops',
            self.peak_tflops,
            'a number above 0, or None',
        )
