"""What happens before a command runs: the environment of JAX and TensorFlow, and a quiet TensorFlow import."""

import os
import sys
import tempfile

from t5flan.files import cache_folder


def prepare_surroundings() -> None:
    """What JAX and TensorFlow read from the environment when a command imports them; what is set already stays."""
    defaults = {
        'JAX_COMPILATION_CACHE_DIR': str(cache_folder() / 'jax'),  # a second start of the same run compiles nothing
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
        'TF_CPP_MIN_LOG_LEVEL': '3',  # TensorFlow reads data here; its start-up notes are no news
        'TF_ENABLE_ONEDNN_OPTS': '0',
        'GRPC_VERBOSITY': 'ERROR',
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of what is as it should be


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up notes (they come before its log level is read) and keeps it off the GPUs.

    TensorFlow reads data here; a GPU's memory is JAX's.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  (SeqIO needs it; it logs as much)

            tf.config.set_visible_devices([], 'GPU')
        except BaseException:
            notes.seek(0)
            os.write(screen, notes.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
