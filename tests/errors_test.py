"""Suggestions for unknown names."""

from t5flan.errors import did_you_mean, nearest


def test_nearest_ignores_case_and_leading_parts():
    assert nearest('BATCHSIZE', ['BATCH_SIZE', 'STEPS']) == 'BATCH_SIZE'
    assert nearest('batch_size', ['BATCH_SIZE', 'STEPS']) == 'BATCH_SIZE'
    assert nearest('emb_dim', ['ModelConfig.emb_dim', 'RunConfig.steps']) == 'ModelConfig.emb_dim'
    assert nearest('x', ['BATCH_SIZE', 'STEPS']) is None and nearest('x', []) is None


def test_the_cutoff_limits_matches():
    assert nearest('STEPPER', ['STEPS']) == 'STEPS' and nearest('STEPPER', ['STEPS'], cutoff=0.95) is None


def test_did_you_mean_ends_a_message():
    assert did_you_mean('trian', ['train', 'infer']) == '; did you mean train?'
    assert did_you_mean('xyz', ['train', 'infer']) == ''
