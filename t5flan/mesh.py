"""The configuration of the device mesh. Standard library only; `sharding.py` builds the mesh."""

import dataclasses
from typing import Any

from t5flan.config.checks import is_count, is_number, require

MESH_AXES = ('data', 'fsdp', 'context', 'tensor')
"""The mesh axes, outermost first."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """The layout of devices: a mesh `data` x `fsdp` x `context` x `tensor`.

    Attributes:
        data: copies of the model, each with its share of the batch; -1: all devices that the other axes leave.
        fsdp: devices over which parameters, optimizer state and the batch are split.
        tensor: devices over which heads, MLP and vocabulary are split.
        context: devices over which every row is split along its length, for rows too long for one device, as well as
            parameters and optimizer state. It divides the lengths of `DataConfig.feature_lengths` (for a decoder-only
            model their sum as well).
        rules: pairs (logical axis, mesh axis or axes or None) that override the table in `sharding.py`.
        peak_tflops: a device's peak dense TFLOP/s, for the utilization on chips that `throughput.py` does not list.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1
    rules: tuple = ()
    peak_tflops: float | None = None

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in MESH_AXES}
        expected = 'a number of devices, or -1 for all that the other axes leave'
        for axis, size in sizes.items():
            require(is_count(size, 1) or size == -1, f'MeshConfig.{axis}', size, expected)
        at_most_one = list(sizes.values()).count(-1) <= 1
        require(
            at_most_one, 'MeshConfig.data', tuple(sizes.values()), f'at most one of {", ".join(MESH_AXES)} to be -1'
        )
        pairs = isinstance(self.rules, (tuple, list)) and all(map(_is_rule, self.rules))
        example = "pairs of a logical axis and a mesh axis, as [('embed', 'fsdp')]"
        require(pairs, 'MeshConfig.rules', self.rules, example)
        rules = tuple((name, tuple(axis) if isinstance(axis, list) else axis) for name, axis in self.rules)
        object.__setattr__(self, 'rules', rules)
        positive = self.peak_tflops is None or (is_number(self.peak_tflops) and self.peak_tflops > 0)
        require(positive, 'MeshConfig.peak_tflops', self.peak_tflops, 'a number above 0, or None')


def _is_rule(rule: Any) -> bool:
    return isinstance(rule, (tuple, list)) and len(rule) == 2 and isinstance(rule[0], str)
