"""The commands of `t5flan`, one file each: flags, help and a thin `run`.

A command reads its flags and settings before it imports JAX or TensorFlow, so `--help` and mistakes respond at once.
"""

from t5flan.commands import (
    adapt,
    backtranslate,
    cache,
    compile,
    convert,
    decontaminate,
    deduplicate,
    evaluate,
    evol_instruct,
    infer,
    lm_eval,
    memorization,
    mixture,
    plan,
    quickstart,
    rationales,
    report,
    score,
    self_instruct,
    train,
    vocabulary,
)

_MODULES = (
    quickstart,
    train,
    evaluate,
    score,
    lm_eval,
    infer,
    rationales,
    self_instruct,
    evol_instruct,
    backtranslate,
    report,
    mixture,
    plan,
    compile,
    cache,
    convert,
    adapt,
    decontaminate,
    deduplicate,
    memorization,
    vocabulary,
)

COMMANDS = {module.COMMAND.name: module.COMMAND for module in _MODULES}
"""Name -> command, in the order of `t5flan --help`."""
