"""`convert --logits`: the same tokens through transformers' model and through ours."""

from pathlib import Path

import jax
import numpy as np

from t5flan.conversion import names
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.conversion.huggingface_config import read_json
from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.parameters import replace_parameters

ROWS, SOURCE, TARGET = 2, 24, 12
TOLERANCE = 1e-4  # of the largest logit; float32 on both sides, summed in other orders


def compare_logits(checkpoint: Checkpoint, hf_folder: Path) -> None:
    """Runs both in float32 on random tokens and prints how far apart their logits are.

    Raises:
        UserError: torch or transformers is not installed, or the logits differ.
    """
    theirs, ours = _theirs(hf_folder, *_tokens(checkpoint)), _ours(checkpoint, *_tokens(checkpoint))
    largest, apart = float(np.abs(ours).max()), float(np.abs(ours - theirs).max())
    said = f'logits of transformers and t5flan: at most {apart:.1e} apart, the largest is {largest:.3g}'
    if not apart <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f'{said}: they are not the same model. Look for what config.json says and t5flan does not know.'
        )
    print(said)


def _tokens(checkpoint: Checkpoint) -> tuple[np.ndarray | None, np.ndarray]:
    """(encoder tokens [B, S] or None, decoder inputs [B, T]), the same at every call."""
    rng, size = np.random.default_rng(0), checkpoint.config.vocab_size
    decoder_BT = rng.integers(3, size, (ROWS, TARGET))
    decoder_BT[:, 0] = checkpoint.vocabulary.start_id
    encoder_decoder = checkpoint.config.architecture == 'encoder_decoder'
    return rng.integers(3, size, (ROWS, SOURCE)) if encoder_decoder else None, decoder_BT


def _ours(checkpoint: Checkpoint, encoder_BS: np.ndarray | None, decoder_BT: np.ndarray) -> np.ndarray:
    arrays = {name: np.empty(shape.whole, np.float32) for name, shape in names.shapes(checkpoint.config).items()}
    for shape, layer, array in checkpoint.pieces(allow_nan=True):
        arrays[shape.name][... if layer is None else layer] = array
    model = replace_parameters(abstract_model(checkpoint.config), arrays)
    batch = {'decoder_input_tokens': decoder_BT.astype(np.int32)}
    if encoder_BS is not None:
        batch['encoder_input_tokens'] = encoder_BS.astype(np.int32)
    return np.asarray(jax.jit(lambda model, batch: model(batch))(model, batch))


def _theirs(folder: Path, encoder_BS: np.ndarray | None, decoder_BT: np.ndarray) -> np.ndarray:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--logits runs transformers' model and needs {error.name}: pip install 't5flan[convert]', or leave it out."
        ) from None
    kind = transformers.AutoModelForCausalLM if encoder_BS is None else transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if encoder_BS is None:
            return model(input_ids=torch.tensor(decoder_BT)).logits.numpy()
        logits_BTV = model(
            input_ids=torch.tensor(encoder_BS), decoder_input_ids=torch.tensor(decoder_BT)
        ).logits.numpy()
    fields = read_json(folder / 'config.json')
    if (
        fields['model_type'] == 'umt5'
        and fields.get('tie_word_embeddings') is False
        and model.config.tie_word_embeddings
    ):
        logits_BTV = logits_BTV * fields['d_model'] ** 0.5
        print("note: this transformers scales UMT5's logits although they are not tied; they are compared without that")
    return logits_BTV
