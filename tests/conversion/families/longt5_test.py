"""LongT5's config.json, and its model there and back."""

import json

import pytest

from t5flan.conversion import convert
from t5flan.errors import UserError
from tests.conversion.round_trip import there_and_back


def test_there_and_back_is_the_identity(tmp_path, shared):
    """Bit for bit; local attention is a window of the encoder, and tied logits that are not scaled stay so."""
    source = convert.read(shared / 'fixtures' / 'hf' / 'longt5_local', 'hf')
    assert source.config.encoder == {'attention_window': 5} and source.config.attention_window is None
    assert source.config.tie_embeddings and not source.config.scale_tied_logits
    there_and_back(source, tmp_path)
    fields = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert (fields['model_type'], fields['local_radius'], fields['scale_decoder_outputs']) == ('longt5', 4, False)
    with pytest.raises(UserError, match="ModelConfig.encoder=.*, but T5X's .* has None"):
        convert.write(source, tmp_path / 't5x', 't5x')
