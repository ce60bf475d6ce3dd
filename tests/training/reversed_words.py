"""A run of a tiny decoder on words that it is to reverse, for tests that train."""

import json
import random
from pathlib import Path
from typing import Any

from t5flan import tasks
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training.config import OptimizerConfig

MODEL = ModelConfig(  # a decoder, because it compiles in half the time of an encoder-decoder
    architecture='decoder_only',
    vocab_size=384,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_decoder_layers=2,
    dropout_rate=0.1,
    dtype='float32',
)
WORDS = ['ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu', 'hen']


def run_settings(folder: Path, task: str, format: str, validation: bool = False) -> dict[str, Any]:
    """Arguments of `train()` without RunConfig and CheckpointConfig: 400 rows, and the task, which is registered.

    Args:
        folder: where the rows are written.
        task: its name, which no other test may use.
        format: DataConfig.format.
        validation: whether the same rows are held-out rows, too.
    """
    path = folder / 'reverse.jsonl'
    rng = random.Random(0)
    rows = [rng.choices(WORDS, k=rng.randint(1, 5)) for _ in range(400)]
    texts = [{'inputs': ' '.join(row), 'targets': ' '.join(row[::-1])} for row in rows]
    path.write_text(''.join(json.dumps(row) + '\n' for row in texts))
    data = DataConfig(
        mixture=task,
        batch_size=8,
        feature_lengths={'inputs': 40, 'targets': 40},
        format=format,
        vocabulary='bytes',
        extra_ids=0,
        file_tasks=(FileTask(name=task, train=str(path), validation=str(path) if validation else None),),
    )
    tasks.register_all(data)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    return dict(model=MODEL, data=data, optimizer=OptimizerConfig(learning_rate=0.01), mesh=mesh)
