"""`convert --logits`: compares the logits of transformers' model with ours on the same tokens."""

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
TOLERANCE = 1e-4  # of the largest logit; both sides use float32 and differ in the order of sums


def compare_logits(checkpoint: Checkpoint, hf_folder: Path) -> None:
    """Runs both models in float32 on random tokens and prints the largest difference of their logits.

    Raises:
        UserError: torch or transformers is not installed, or the logits differ.
    """
    encoder_BS, decoder_BT = _tokens(checkpoint)
    theirs = _hugging_face_logits(hf_folder, encoder_BS, decoder_BT)
    ours = _our_logits(checkpoint, encoder_BS, decoder_BT)
    largest, difference = float(np.abs(ours).max()), float(np.abs(ours - theirs).max())
    result = f'logits of transformers and t5flan differ by at most {difference:.1e}; the largest is {largest:.3g}'
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(f'{result}: the models differ. Look for a field of config.json that t5flan does not read.')
    print(result)


def _tokens(checkpoint: Checkpoint) -> tuple[np.ndarray | None, np.ndarray]:
    """(encoder tokens [B, S] or None, decoder inputs [B, T])."""
    rng, size = np.random.default_rng(0), checkpoint.config.vocab_size
    decoder_BT = rng.integers(3, size, (ROWS, TARGET))
    decoder_BT[:, 0] = checkpoint.vocabulary.start_id
    encoder_decoder = checkpoint.config.architecture == 'encoder_decoder'
    return rng.integers(3, size, (ROWS, SOURCE)) if encoder_decoder else None, decoder_BT


def _our_logits(checkpoint: Checkpoint, encoder_BS: np.ndarray | None, decoder_BT: np.ndarray) -> np.ndarray:
    arrays = {name: np.empty(shape.whole, np.float32) for name, shape in names.shapes(checkpoint.config).items()}
    for shape, layer, array in checkpoint.pieces(allow_nan=True):
        arrays[shape.name][... if layer is None else layer] = array
    model = replace_parameters(abstract_model(checkpoint.config), arrays)
    batch = {'decoder_input_tokens': decoder_BT.astype(np.int32)}
    if encoder_BS is not None:
        batch['encoder_input_tokens'] = encoder_BS.astype(np.int32)
    return np.asarray(jax.jit(lambda model, batch: model(batch))(model, batch))


def _hugging_face_logits(folder: Path, encoder_BS: np.ndarray | None, decoder_BT: np.ndarray) -> np.ndarray:
    try:
        import torch
        import transformers
    except ImportError as error:
        fix = "pip install 't5flan[convert]', or leave it out."
        raise UserError(f"--logits runs transformers' model and needs {error.name}: {fix}") from None
    kind = transformers.AutoModelForCausalLM if encoder_BS is None else transformers.AutoModelForSeq2SeqLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = {'input_ids': torch.tensor(decoder_BT)}
    if encoder_BS is not None:
        tokens = {'input_ids': torch.tensor(encoder_BS), 'decoder_input_ids': torch.tensor(decoder_BT)}
    with torch.no_grad():
        logits_BTV = model(**tokens).logits.numpy()
    fields = read_json(folder / 'config.json')
    untied_umt5 = fields['model_type'] == 'umt5' and fields.get('tie_word_embeddings') is False
    if untied_umt5 and getattr(model.config, 'scale_decoder_outputs', model.config.tie_word_embeddings):
        logits_BTV = logits_BTV * fields['d_model'] ** 0.5
        print("note: this transformers scales UMT5's logits although they are not tied; the comparison undoes that")
    return logits_BTV
