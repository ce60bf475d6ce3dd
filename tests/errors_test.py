"""Suggestions for unknown names."""

from t5flan.errors import did_you_mean, disk_problem, nearest


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


def test_a_full_disk_is_recognized_however_it_is_wrapped():
    full = OSError(28, 'No space left on device', '/x/y')
    assert disk_problem(full) == 'No space left on device: /x/y'
    try:
        try:
            raise full
        except OSError as error:
            raise RuntimeError('saving failed') from error
    except RuntimeError as error:
        wrapped = error
    assert disk_problem(ExceptionGroup('several', [KeyError('x'), wrapped])) == 'No space left on device: /x/y'
    told = ValueError(
        'RESOURCE_EXHAUSTED: writing "a/0.0" at local file "/x/z/": [OS error 28: No space left on device]'
    )
    assert disk_problem(told) == 'No space left on device: /x/z/'
    assert disk_problem(KeyError('x')) is None
