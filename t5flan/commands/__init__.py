"""The commands of `t5flan`, one file each: its flags, its help and a thin `run`.

A command reads flags and settings before it imports JAX or TensorFlow, so that `--help` and mistakes answer at once.
"""

from t5flan.commands import (
    cache,
    convert,
    deduplicate,
    evaluate,
    infer,
    memorization,
    mixture,
    quickstart,
    rationales,
    report,
    train,
    vocabulary,
)

COMMANDS = {
    command.name: command
    for command in (
        quickstart.COMMAND,
        train.COMMAND,
        evaluate.COMMAND,
        infer.COMMAND,
        rationales.COMMAND,
        report.COMMAND,
        mixture.COMMAND,
        cache.COMMAND,
        convert.COMMAND,
        deduplicate.COMMAND,
        memorization.COMMAND,
        vocabulary.COMMAND,
    )
}
"""Name -> command, in the order of `t5flan --help`."""
