"""Package metadata and dependencies.

The top-level folders `gin/` and `tasks/` are part of the package: `t5flan/gin` and `t5flan/tasks` are symbolic links to
them, so a checkout, an editable install and a wheel have the same layout.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 't5flan' / 'version.py').read_text(encoding='utf-8')).group(1)
README = ROOT / 'README.md'

setup(
    name='t5flan',
    version=VERSION,
    description='Pretraining and instruction finetuning of language models in JAX, on one CPU or on a TPU pod.',
    long_description=README.read_text(encoding='utf-8') if README.is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords=['JAX', 'Flax', 'T5', 'T5X', 'SeqIO', 'Flan', 'UL2', 'language models', 'instruction tuning'],
    python_requires='>=3.11,<3.14',
    packages=[
        *find_packages(include=['t5flan', 't5flan.*']),
        't5flan.gin',  # data without an __init__.py: a top-level gin/ with one would hide gin-config
    ],
    package_data={
        't5flan.gin': ['**/*.gin'],
        't5flan.tasks': ['**/*.json'],
        't5flan.synthesis': ['*.json', '*.jsonl'],
        't5flan': ['py.typed'],
    },
    install_requires=[
        'jax>=0.10.2',
        'flax>=0.12.8',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'tensorstore>=0.1.69',  # used by Orbax; conversion reads and writes zarr with it
        'array_record>=0.8',  # cached tasks; also a dependency of TFDS
        'seqio>=0.0.20',  # brings tensorflow and tensorflow-text
        'tensorflow-datasets>=4.9.10',
        'xxhash>=3.5',  # checksums of checkpoints, 24 GB/s: CRC-32 of zlib would cost over 5 % of a save
        'importlib-resources>=6.0',  # TFDS imports it without requiring it
        'gin-config>=0.5.0',
        'numpy>=2.0',
        'scipy>=1.13',  # JAX requires it too
        'pyarrow>=16.0',  # Parquet and zstd; TFDS brings it too
        'ml_dtypes>=0.5',  # bfloat16 for NumPy
        'sentencepiece>=0.2.0',
        'rich>=13.0',
        'jinja2>=3.1.6',  # chat templates; earlier versions have known escapes from the sandbox
        'matplotlib>=3.8',
        'tensorboard>=2.20',
    ],
    extras_require={
        'tpu': ['jax[tpu]>=0.10.2', 'google-cloud-storage>=3.0'],
        'gcs': ['google-cloud-storage>=3.0'],  # gs:// paths; TensorStore has its own client, for arrays
        'compile': ['jax[tpu]>=0.10.2'],  # brings libtpu, the TPU compiler, in the one version that fits this JAX
        'convert': ['torch>=2.4', 'transformers>=4.57', 'tokenizers>=0.20', 'gguf>=0.17'],
        # sentencepiece 0.2.2 and later require protobuf 7; Beam requires protobuf below 7
        'beam': ['apache-beam>=2.77', 'sentencepiece<0.2.2'],
        'metrics': ['rouge-score>=0.1.2', 'sacrebleu>=2.4'],  # of FileTask.metrics
        'dedup': [],  # deduplicate needs no package of its own any more; the extra stays for old install lines
        'hub': ['datasets>=4.0', 'huggingface_hub>=1.0'],  # hf:NAME; earlier versions run code of the data set
        'eval': ['lm-eval>=0.4.10', 'tqdm>=4.66'],  # t5flan lm_eval
        'dev': [
            # What the tests of optional features need.
            'datasets>=4.0',
            'huggingface_hub>=1.0',
            'rouge-score>=0.1.2',
            'sacrebleu>=2.4',
            'tokenizers>=0.20',
            'gguf>=0.17',
            'google-cloud-storage>=3.0',
            'pytest>=8.2',
            'pytest-xdist>=3.6',
            'pytest-randomly>=4.0',
            'ruff>=0.17',
            'mypy>=2.0',
            'nbclient>=0.10',  # runs the notebooks of docs/
            'ipykernel>=6.29',
        ],
        'docs': ['mkdocs-material>=9.6', 'mkdocstrings>=1.0', 'mkdocstrings-python>=2.0'],
    },
    entry_points={'console_scripts': ['t5flan = t5flan.__main__:console']},
    classifiers=[
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
)
