"""A tiny run of `t5flan train` for the attacks, and processes that start fast: forks of one that has imported all."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ENVIRONMENT = {
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'XLA_FLAGS': '--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false',
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.05',
}
TINY = (
    '--gin_file=runs/finetune_file',
    '--gin_file=models/tiny_encoder_decoder',
    '--gin.INITIALIZE_FROM=None',
    '--gin.VOCABULARY=bytes',
    '--gin.BATCH_SIZE=4',
    '--gin.ModelConfig.emb_dim=16',
    '--gin.ModelConfig.mlp_dim=16',
    '--gin.ModelConfig.num_encoder_layers=1',
    '--gin.ModelConfig.num_decoder_layers=1',
    "--gin.FEATURE_LENGTHS={'inputs': 16, 'targets': 8}",
    '--gin.EvaluationConfig.every=0',
    '--gin.RunConfig.log_every=1',
)


def write_rows(folder: Path, count: int = 40) -> Path:
    """A file of training rows."""
    path = folder / 'rows.jsonl'
    rows = ({'inputs': f'question {i}', 'targets': f'answer {i}'} for i in range(count))
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def train_arguments(workdir: Path | str, rows: Path | str, steps: int, every: int) -> list[str]:
    """The command line of the run, after `t5flan`."""
    given = [f'--gin.TRAIN_FILE={rows}', f'--gin.STEPS={steps}', f'--gin.CheckpointConfig.every={every}']
    return ['train', f'--workdir={workdir}', *TINY, *given]


def losses(workdir: Path) -> dict[int, tuple[float, float]]:
    """Step -> loss and gradient norm of metrics.jsonl; a step that is there twice is an error."""
    found: dict[int, tuple[float, float]] = {}
    path = workdir / 'metrics.jsonl'
    for line in path.read_text().split('\n') if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        assert row['step'] not in found, f'step {row["step"]} is there twice'
        found[row['step']] = row['loss'], row['grad_norm']
    return found


def preload() -> None:
    """Imports what the commands need, without starting JAX's devices: a fork then starts in no time."""
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    from t5flan.commands.startup import import_tensorflow, set_environment

    set_environment()
    import_tensorflow()
    import t5flan.evaluation.evaluator
    import t5flan.evaluation.inference
    import t5flan.tasks
    import t5flan.training.trainer  # noqa: F401


def _nothing() -> None:
    pass


def start(
    arguments: Sequence[str], log: Path, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> int:
    """Starts `t5flan ARGUMENTS` in a fork, with its output in `log`; returns its process id.

    The fork calls `before` and `after` it.
    """
    sys.stdout.flush()  # the fork would write it again
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        from t5flan.__main__ import main

        before()
        code = main(arguments)
        after()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """Waits for a process; returns its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
