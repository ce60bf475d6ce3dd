"""Thirty steps from T5X's parameters on T5X's batches have T5X's losses."""

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_parameters
from t5flan.training.config import LossConfig, OptimizerConfig
from t5flan.training.optimizer import make_optimizer
from t5flan.training.state import create_state
from t5flan.training.step import make_train_step

CONFIG = ModelConfig(
    architecture='encoder_decoder',
    vocab_size=256,
    emb_dim=144,
    num_heads=4,
    head_dim=36,
    mlp_dim=160,
    num_encoder_layers=2,
    num_decoder_layers=2,
    scan_layers=True,
    dtype='float32',
)


def from_t5x(recorded, prefix: str, like):
    """T5X's parameters in our tree, with stacked layers and separate heads and kv."""
    leaves = []
    for path, shape in named_parameters(like).items():
        if '/layers/' in path:
            layers = [recorded[prefix + path.replace('/layers/', f'/layers_{i}/')] for i in range(shape.shape[0])]
            leaves.append(jnp.asarray(np.stack(layers).reshape(shape.shape)))
        else:
            leaves.append(jnp.asarray(recorded[prefix + path].reshape(shape.shape)))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def test_thirty_steps_are_t5x(shared):
    recorded = np.load(shared / 'fixtures' / 't5x' / 'train_t5x.npz')
    settings = OptimizerConfig(learning_rate=float(recorded['lr'][0]))
    assert np.all(recorded['lr'] == recorded['lr'][0])
    shapes = abstract_model(CONFIG)
    optimizer = make_optimizer(settings, logical_axes(shapes), 30)
    state = create_state(from_t5x(recorded, 'param/', shapes), optimizer)
    step = jax.jit(make_train_step(settings, LossConfig(z_loss=1e-4, normalize=False), optimizer, 0))
    features = ('encoder_input_tokens', 'decoder_input_tokens', 'decoder_target_tokens', 'decoder_loss_weights')
    batches = [{name: recorded[f'batch/{i}/{name}'] for name in features} for i in range(3)]
    losses, z_losses = [], []
    with jax.default_matmul_precision('highest'):
        for i in range(30):
            state, metrics = step(state, batches[i % 3])
            losses.append(float(metrics['loss'] * metrics['tokens']))  # T5X reports sums
            z_losses.append(float(metrics['z_loss'] * metrics['tokens']))
    np.testing.assert_allclose(losses, recorded['loss'], rtol=1e-3)
    np.testing.assert_allclose(z_losses, recorded['z_loss'], rtol=1e-3)
    after = named_parameters(from_t5x(recorded, 'after/', shapes))
    for path, given in named_parameters(state.model).items():
        distance = np.linalg.norm(given - after[path]) / np.linalg.norm(after[path])
        assert distance < 1e-2, f'{path} ended {distance:.2g} from where T5X took it'
