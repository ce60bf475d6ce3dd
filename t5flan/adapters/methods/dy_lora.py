"""DyLoRA, dynamic search-free low-rank adaptation (https://arxiv.org/abs/2210.07558): LoRA that works at any rank.

    y = x W + alpha / b * (x A[:, :b]) B[:b]        b is drawn in each training step, from 1 to the rank

What matters most comes first, so the adapter can be cut to any smaller rank without training it again.
"""

import dataclasses

import jax
import jax.numpy as jnp

from t5flan.adapters.methods.lora import Lora
from t5flan.config.checks import is_count, require
from t5flan.errors import UserError
from t5flan.models.model import Model
from t5flan.models.parameters import named_axes, named_parameters


@dataclasses.dataclass(frozen=True)
class DyLora(Lora):
    """DyLoRA (https://arxiv.org/abs/2210.07558): LoRA that can be cut to any smaller rank once it is trained.

    A training step uses the first b columns of A and rows of B, and scales by alpha / b; b is uniform from 1 to the
    rank, the same for all kernels (at most the rank of each). Evaluation uses the whole adapter.
    `t5flan convert --rank=N` cuts it to a rank.

    Attributes:
        rank, alpha, rslora, targets, rank_pattern, alpha_pattern, bias: as of `Lora`; ranks are the largest ones.
        only_last: a step trains column and row b alone (the paper's "frozen" variant), not all of the first b.
    """

    only_last: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.only_last, bool), 'DyLora.only_last', self.only_last, 'True or False')

    def in_step(self, model: Model, key: jax.Array) -> Model:
        """The model cut to a random rank."""
        largest = max([self.rank, *self.rank_pattern.values()])
        rank, axes = jax.random.randint(key, (), 1, largest + 1), named_axes(model)
        leaves = [
            self._first(x, axes[name].index('rank'), rank, scaled=name.endswith('/lora_a'))
            if 'rank' in axes[name]
            else x
            for name, x in named_parameters(model).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(model), leaves)

    def _first(self, x: jax.Array, axis: int, rank: jax.Array, *, scaled: bool) -> jax.Array:
        """A or B with zeros after the first `rank` entries of an axis; A is `scaled` to make up for the lower rank."""
        own = x.shape[axis]
        used = jnp.minimum(rank, own)
        index = jnp.arange(own).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        if self.only_last:
            x = jnp.where(index == used - 1, x, jax.lax.stop_gradient(x))
        ratio = own / used
        factor = (jnp.sqrt(ratio) if self.rslora else ratio) if scaled else 1.0
        return jnp.where(index < used, x * factor, 0.0)

    def at_rank(self, rank: int) -> Lora:
        """The settings of the adapter's first `rank` columns and rows: plain LoRA.

        Raises:
            UserError: the adapter has fewer.
        """
        largest = max([self.rank, *self.rank_pattern.values()])
        if not is_count(rank, 1) or rank > largest:
            raise UserError(f'--rank={rank}, expected a rank from 1 to {largest}, that of the adapter. Set --rank.')
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Lora)}
        ranks = {pattern: min(own, rank) for pattern, own in self.rank_pattern.items()}
        return Lora(**fields | {'rank': min(self.rank, rank), 'rank_pattern': ranks})
