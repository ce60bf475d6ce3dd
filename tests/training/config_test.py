"""Invalid settings are refused in one line that names the setting."""

import pytest

from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig


@pytest.mark.parametrize(
    'make, setting',
    [
        (lambda: OptimizerConfig(name='sgd'), 'OptimizerConfig.name'),
        (lambda: OptimizerConfig(learning_rate='1e-3'), 'OptimizerConfig.learning_rate'),
        (lambda: OptimizerConfig(learning_rate=float('nan')), 'OptimizerConfig.learning_rate'),
        (lambda: OptimizerConfig(schedule='exponential'), 'OptimizerConfig.schedule'),
        (lambda: OptimizerConfig(warmup_steps=-1), 'OptimizerConfig.warmup_steps'),
        (lambda: OptimizerConfig(microbatches=0), 'OptimizerConfig.microbatches'),
        (lambda: OptimizerConfig(microbatches=True), 'OptimizerConfig.microbatches'),
        (lambda: OptimizerConfig(clip_by_global_norm=0.0), 'OptimizerConfig.clip_by_global_norm'),
        (lambda: OptimizerConfig(weight_decay=-0.1), 'OptimizerConfig.weight_decay'),
        (lambda: OptimizerConfig(decay_steps=0), 'OptimizerConfig.decay_steps=0, expected an integer of 1 or more'),
        (lambda: OptimizerConfig(final_ratio=1.5), 'OptimizerConfig.final_ratio'),
        (lambda: OptimizerConfig(epsilon=0.0), 'OptimizerConfig.epsilon=0.0, expected a number above 0. Set'),
        (lambda: OptimizerConfig(factored=1), 'OptimizerConfig.factored'),
        (
            lambda: OptimizerConfig(b1=1.0),
            'OptimizerConfig.b1=1.0, expected a number of 0 or more and below 1, or None',
        ),
        (lambda: OptimizerConfig(b2=None), 'OptimizerConfig.b2'),
        (lambda: OptimizerConfig(freeze='encoder/.*'), 'OptimizerConfig.freeze'),
        (lambda: OptimizerConfig(freeze=('encoder/(',)), 'OptimizerConfig.freeze'),
        (lambda: LossConfig(label_smoothing=1.0), 'LossConfig.label_smoothing'),
        (lambda: LossConfig(chunk_tokens=0), 'LossConfig.chunk_tokens'),
        (lambda: MeshConfig(data=0), 'MeshConfig.data'),
        (lambda: MeshConfig(fsdp=-1), 'MeshConfig.data'),
        (lambda: MeshConfig(rules=('embed',)), 'MeshConfig.rules'),
        (lambda: CheckpointConfig(best_mode='least'), 'CheckpointConfig.best_mode'),
        (lambda: CheckpointConfig(initialize='some'), 'CheckpointConfig.initialize'),
        (lambda: CheckpointConfig(initialize_from=''), 'CheckpointConfig.initialize_from'),
        (lambda: EvaluationConfig(batches=0), 'EvaluationConfig.batches'),
        (lambda: EvaluationConfig(split=''), 'EvaluationConfig.split'),
        (lambda: RunConfig(steps=0), 'RunConfig.steps'),
    ],
)
def test_an_invalid_value_is_refused_in_one_line_that_names_its_setting(make, setting):
    with pytest.raises(UserError) as error:
        make()
    assert setting in str(error.value) and '\n' not in str(error.value)


def test_lists_from_gin_become_tuples():
    assert OptimizerConfig(freeze=['encoder/.*']).freeze == ('encoder/.*',)
    assert MeshConfig(rules=[['embed', ['fsdp', 'data']]]).rules == (('embed', ('fsdp', 'data')),)
    hash((OptimizerConfig(freeze=['encoder/.*']), MeshConfig(rules=[['embed', ['fsdp', 'data']]])))


def test_the_best_checkpoint_is_kept_by_default_where_there_is_an_evaluation():
    assert CheckpointConfig().resolved(evaluates=True).best_metric == 'eval/loss'
    assert CheckpointConfig().resolved(evaluates=False).best_metric is None
    for given in (None, 'exact_match'):
        config = CheckpointConfig(best_metric=given)
        assert config.resolved(evaluates=True) == config
    with pytest.raises(UserError, match='CheckpointConfig.patience=2, expected None without'):
        CheckpointConfig(patience=2).resolved(evaluates=False)
