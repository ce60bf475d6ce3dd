"""The loss of a packed batch is that of its examples one by one, in every format and for conversations."""

import jax
import numpy as np
import pytest

from t5flan.data.batches.converter import make_batch
from t5flan.data.batches.packing import Packer
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context
from t5flan.data.preprocessing.features import LOSS_WEIGHTS, row_capacity, row_cost
from t5flan.data.prompting.conversations import converse
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.training.config import LossConfig
from t5flan.training.step import loss_sums
from tests.models.small_models import small_model

LENGTHS = {'inputs': 64, 'targets': 64}
FAMILIES = {
    'encoder_decoder': ('t5_1_1', 'umt5'),
    'prefix_lm': ('relative', 'palm'),
    'causal_lm': ('relative', 'gemma', 'modern'),
}
CASES = [(format, family) for format, families in FAMILIES.items() for family in families]


def conversation(rng, format):
    vocabulary = ByteVocabulary()
    turns = 2 * rng.integers(1, 4)
    record = {
        'roles': ['user', 'assistant'] * (turns // 2),
        'texts': ['ab'[i % 2] * rng.integers(1, 5) for i in range(turns)],
    }
    markers = {role: role[0].upper() for role in ('system', 'tools', 'user', 'assistant', 'call', 'observation')}
    return converse.apply(
        record, Context(vocabulary, LENGTHS, format=format, instructions=InstructionConfig(chat_markers=markers))
    )


def examples(format, count, chats, seed):
    rng = np.random.default_rng(seed)
    made = [conversation(rng, format) for _ in range(chats)]
    for _ in range(count - chats):
        inputs, targets = (rng.integers(2, 260, rng.integers(1, most), dtype=np.int32) for most in (30, 20))
        made.append({'inputs': inputs, 'targets': targets})
    return [made[i] for i in rng.permutation(count)]


@jax.jit
def jitted_sums(model, batch):
    return loss_sums(model, batch, batch['decoder_loss_weights'], LossConfig(), None)


def sums(model, batch):
    found = jitted_sums(model, batch)
    return [float(x) for x in (found.loss, found.weight, found.correct)]


@pytest.mark.parametrize('format,family', CASES)
@pytest.mark.parametrize('chats', [0, 4, 8])
def test_packed_equals_one_by_one(format, family, chats):
    model = small_model(family, vocab_size=260)
    made = examples(format, 8, chats, seed=chats)
    packer = Packer(4, row_capacity(format, LENGTHS), pack=True)
    assert all(packer.add(example, row_cost(format, example)) for example in made)
    assert max(map(len, packer.rows)) > 1
    packed = sums(model, make_batch(format, LENGTHS, packer.rows, True))
    single = np.sum(
        [sums(model, make_batch(format, LENGTHS, [[example]], packed=chats == 8)) for example in made], axis=0
    )
    expected = sum(example.get(LOSS_WEIGHTS, np.ones(len(example['targets']))).sum() for example in made)
    assert packed[1] == single[1] == expected
    np.testing.assert_allclose(packed[0] / expected, single[0] / expected, rtol=1e-5)
    assert packed[2] == single[2]


@pytest.mark.parametrize('format,family', CASES)
def test_the_check_can_fail(format, family):
    """Without segment ids the examples of a row see each other, and the loss differs."""
    model = small_model(family, vocab_size=260)
    made = examples(format, 3, 2, seed=1)
    batch = make_batch(format, LENGTHS, [made], True)
    names = [name for name in batch if name.endswith('segment_ids')]
    blind = batch | {name: (batch[name] > 0).astype(np.int32) for name in names}
    assert abs(sums(model, blind)[0] / sums(model, batch)[0] - 1) > 1e-4


def test_user_turns_are_not_trained_on():
    """The gradient with respect to the logits is zero at the user's tokens, and only there."""
    model = small_model('relative', vocab_size=260)
    [example] = examples('causal_lm', 1, 1, seed=5)
    batch = make_batch('causal_lm', LENGTHS, [[example]], True)

    def loss(shift):
        hidden = model.hidden(batch)
        logits = model.logits(hidden) + shift
        picked = jax.numpy.take_along_axis(
            jax.nn.log_softmax(logits), batch['decoder_target_tokens'][..., None], axis=-1
        )[..., 0]
        return -(picked * batch['decoder_loss_weights']).sum()

    gradient = np.abs(np.asarray(jax.grad(loss)(jax.numpy.zeros((1, sum(LENGTHS.values()), 260))))).sum(-1)[0]
    tokens = batch['decoder_target_tokens'][0]
    assert not gradient[tokens == ByteVocabulary().encode('a')[0]].any()
    assert (gradient[tokens == ByteVocabulary().encode('b')[0]] > 0).all()
