"""Flags that several commands share."""

import argparse
import dataclasses
from typing import Any

from t5flan.commands.arguments import Flag

JSON = Flag('--json', 'also write the table to FILE as JSON', 'FILE')
SKIP_BROKEN = Flag('--skip_broken', 'leave out tasks that cannot be loaded, and say which and why', type=bool)
CHECKPOINT = Flag(
    '--checkpoint',
    'the workdir of a `t5flan train` run, or one of its steps: DIR/checkpoints/1000',
    'DIR',
    required=True,
)

DECODING = (
    Flag('--step', 'the checkpoint of this step; the latest', 'N', int),
    Flag('--max_new_tokens', 'the longest answer; the length of targets in training', 'N', int),
    Flag('--temperature', '0 takes the likeliest token; above it draws (0)', 'X', float, 0.0),
    Flag('--top_k', 'draws among the K likeliest tokens; 0 among all (0)', 'K', int, 0),
    Flag('--top_p', 'draws among the likeliest tokens that make up this share (1)', 'X', float, 1.0),
    Flag('--seed', 'decides what is drawn (0)', 'N', int, 0),
    Flag('--batch_size', 'rows at a time (32)', 'N', int, 32),
)

SAMPLING = tuple(
    dataclasses.replace(flag, help=flag.help.replace('(0)', '(0.7)'), default=0.7)
    if flag.name == '--temperature'
    else dataclasses.replace(flag, help=flag.help.replace('(32)', '(8)'), default=8)
    if flag.name == '--batch_size'
    else flag
    for flag in DECODING
)
"""The same where rationales are drawn."""


def skip_broken(arguments: argparse.Namespace) -> list[str]:
    return ['DataConfig.skip_broken=True'] if arguments.skip_broken else []


def decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    return {flag.name[2:]: getattr(arguments, flag.name[2:]) for flag in DECODING}
