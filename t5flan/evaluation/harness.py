"""EleutherAI's lm-evaluation-harness with our models: importing this file registers the model `t5flan`.

    import lm_eval
    import t5flan.evaluation.harness

    lm_eval.simple_evaluate(model='t5flan', model_args='checkpoint=runs/mine,batch_size=8', tasks=['arc_easy'])

On a command line, `t5flan lm_eval` does the import and takes lm-eval's own arguments.

Texts become tokens as in lm-eval's Hugging Face backend, so that the numbers are comparable (Gao et al.,
doi:10.5281/zenodo.12608602):

- White space at the end of a context moves to the continuation. A decoder reads context + continuation encoded as one
  text; an encoder-decoder encodes them apart, and the context ends with end of sequence.
- A decoder's context begins with the beginning of sequence only if the tokenizer adds it. An empty one is that token.
- What is too long loses tokens from the left.

A decoder that was trained with inputs (features 'inputs' and 'targets', plain prompts) reads the context as its input:
encoded apart and ended as in training.
"""

import argparse
import inspect
import json
import logging
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from tqdm import tqdm

from t5flan.conversion.convert import as_checkpoint_folder
from t5flan.data.vocabulary import chat_template
from t5flan.decoding.config import Decoding
from t5flan.decoding.likelihood import Likelihood, rolling_windows
from t5flan.errors import UsageError, UserError, did_you_mean
from t5flan.evaluation.steps import load_adapted
from t5flan.files import read_object, to_path
from t5flan.language_model import LanguageModel

try:
    import lm_eval.__main__
    import lm_eval.models  # registers lm-eval's own models, which it does only if there are none yet
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import simple_parse_args_string
except ImportError as error:
    raise UserError(f"lm-eval is missing ({error}): pip install 't5flan[eval]'.") from None

_LOG = logging.getLogger(__name__)
_AUTO_BATCH_SIZE = 32
_LEAST_MAX_LENGTH = 2048  # lm-eval's default where a model has no limit
_FIRST_ROUND = 32
_NEUTRAL = {'num_beams': 1, 'num_return_sequences': 1, 'repetition_penalty': 1.0, 'length_penalty': 1.0, 'min_p': 0.0}
"""Generation settings that we lack -> the value at which they change nothing."""
_IGNORED = ('until', 'do_sample', 'max_gen_toks', 'use_cache', 'early_stopping')


@register_model('t5flan')
class HarnessModel(TemplateLM):
    """A checkpoint as a model of lm-eval: all of its tasks run with it, of both architectures.

    Raises:
        UserError: an argument is wrong, or the checkpoint cannot be loaded.
    """

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> 'HarnessModel':
        """Makes the model of lm-eval's model_args; what they set wins over lm-eval's own flags, such as --batch_size.

        Raises:
            UserError: an argument is unknown or missing.
        """
        known = list(inspect.signature(cls).parameters)
        for name in arg_dict:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UserError(f'model_args has {name}={arg_dict[name]}, expected {", ".join(known)}{hint}')
        if not arg_dict.get('checkpoint'):
            raise UserError('model_args has no checkpoint. Set --model_args=checkpoint=DIR')
        return cls(**{name: x for name, x in (additional_config or {}).items() if x is not None} | arg_dict)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> 'HarnessModel':
        """`create_from_arg_obj` of 'name=value,...'."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def __init__(
        self,
        checkpoint: str | LanguageModel,
        batch_size: int | str = 1,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        step: int | None = None,
        dtype: str | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
        adapter: str | None = None,
    ) -> None:
        """Loads the model.

        Args:
            checkpoint: a checkpoint folder, a Hugging Face folder, a GGUF file, 'hf:OWNER/NAME', or a loaded model.
            batch_size: distinct contexts that are read together; 'auto' is `max_batch_size`.
            max_length: tokens of context and continuation that a decoder reads, or of each for an encoder-decoder.
                Default: the length that a converted model's configuration states, else 2048, or more if rows in
                training were longer.
            max_gen_toks: new tokens where a task does not say.
            step: which checkpoint; default: the latest.
            dtype: the compute dtype; default: that of the checkpoint.
            seed: of samples, in tasks that sample.
            max_batch_size: the batch size of batch_size='auto' (default: 32).
            device: not used. lm-eval passes PyTorch's name of a device; JAX_PLATFORMS chooses JAX's.
            adapter: the folder of an adapter of the checkpoint. The folder may also be the `checkpoint` itself, which
                names its base.
        """
        super().__init__()
        if not isinstance(checkpoint, LanguageModel):
            checkpoint = load_adapted(as_checkpoint_folder(str(checkpoint)), adapter, step, dtype)
        self.model = checkpoint
        automatic = str(batch_size).startswith('auto')
        self.batch_size = _positive('batch_size', (max_batch_size or _AUTO_BATCH_SIZE) if automatic else batch_size)
        self.max_length = _positive('max_length', max_length or default_max_length(self.model))
        self.max_gen_toks, self.seed = _positive('max_gen_toks', max_gen_toks), int(seed)
        model = self.model
        self.apart = model.format == 'encoder_decoder' or (
            model.prompt_format in (None, 'plain') and model.inputs_end and not model.vocabulary.conventions.add_eos
        )
        self.backend = 'seq2seq' if self.apart else 'causal'  # how TemplateLM encodes a context with its continuation

    # -- Tokens -----------------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of sequence."""
        return self.model.vocabulary.turn_end_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context: a decoder's start token, or end of sequence, an empty input's only id."""
        return self.model.vocabulary.eos_id if self.apart else self.model.vocabulary.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, in which control tokens are read as such, with those that the tokenizer adds."""
        vocabulary = self.model.vocabulary
        ids = vocabulary.encode_rendered(string)
        if add_special_tokens is False:
            return ids
        if self.apart:
            return [*ids, vocabulary.eos_id]
        named = vocabulary.conventions.named_tokens.get('bos_token')
        has_start = bool(named) and string.startswith(str(named))
        return [vocabulary.start_id, *ids] if self.model.starts and not has_start else ids

    # -- Chat -------------------------------------------------------------------------------------------------------

    @property
    def tokenizer_name(self) -> str:
        """A name that only equal vocabularies share; lm-eval's request cache contains it."""
        return f't5flan-{self.model.vocabulary.fingerprint}'

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The vocabulary's chat template, if lm-eval is to use it."""
        return self.model.vocabulary.conventions.chat_template if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation, up to where the reply begins, or where its begun last turn continues."""
        conventions = self.model.vocabulary.conventions
        try:
            text = chat_template.render(conventions, chat_history, reply=add_generation_prompt)
        except UserError:
            turns = [turn for turn in chat_history if turn['role'] != 'system']
            if conventions.chat_template is None or len(turns) == len(chat_history):
                raise
            _LOG.warning('the chat template refuses the conversation; trying it without the system message')
            return self.apply_chat_template(turns, add_generation_prompt)
        return text if add_generation_prompt else _open_end(text, chat_history[-1]['content'])

    # -- Likelihoods ------------------------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether it is what greedy decoding writes) for each request."""
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        found = self._likelihoods(cut, 'Running loglikelihood requests', disable_tqdm)
        results = [(one.log_prob, one.is_greedy) for one in found]
        for (text, _, _), result in zip(requests, results, strict=True):
            if text is not None:
                self.cache_hook.add_partial('loglikelihood', text, result)
        return results

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns log p(text) in nats of each request, over windows of `max_length` tokens."""
        unscored = [self.model.vocabulary.pad_id]  # T5's start token; lm-eval scores Llama's, after another one
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for i, (text,) in enumerate(request.args for request in requests):
            ids = self.tok_encode(text)
            ids = ids[1:] if ids[:1] == unscored and self.model.vocabulary.start_id in unscored else ids
            pairs = [*rolling_windows(ids, self.prefix_token_id, self.max_length)]
            windows, owners = windows + pairs, owners + [i] * len(pairs)
        totals = [0.0] * len(requests)
        for i, one in zip(owners, self._likelihoods(windows, 'Running rolling requests', disable_tqdm), strict=True):
            totals[i] += one.log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
        return totals

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Drops tokens at the left of a context that is too long.

        Raises:
            UserError: the continuation alone is too long.
        """
        if len(continuation) > self.max_length:
            long = f'a continuation has {len(continuation)} tokens, expected at most max_length={self.max_length}'
            raise UserError(f'{long}. Set max_length in model_args.')
        if self.apart:
            return context[-self.max_length :], continuation
        return context[max(0, len(context) + len(continuation) - self.max_length - 1) :], continuation

    def _likelihoods(
        self, pairs: Sequence[tuple[list[int], list[int]]], what: str, disable_tqdm: bool
    ) -> list[Likelihood]:
        contexts, continuations = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        with tqdm(total=len(pairs), desc=what, disable=disable_tqdm) as bar:
            return self.model.likelihoods(
                contexts,
                continuations,
                batch_size=self.batch_size,
                started=not self.apart,
                progress=_advance(bar),
            )

    # -- Generation -------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each request, up to the first of its stop sequences."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
        results = [''] * len(requests)
        with tqdm(total=len(requests), desc='Running generate_until requests', disable=disable_tqdm) as bar:
            for chosen in groups.values():
                texts = self._generate(
                    [requests[i].args[0] for i in chosen], requests[chosen[0]].args[1], chosen, bar.update
                )
                for i, text in zip(chosen, texts, strict=True):
                    results[i] = text
                    self.cache_hook.add_partial('generate_until', requests[i].args, text)
        return results

    def _generate(
        self, contexts: Sequence[str], settings: Mapping[str, Any], rows: Sequence[int], update: Callable[[int], Any]
    ) -> list[str]:
        """Generates in rounds, each twice as long as the one before, until every text has a stop sequence."""
        settings = normalize_gen_kwargs(dict(settings), self.max_gen_toks)
        limit, decoding = settings['max_gen_toks'], self._decoding(settings)
        stops = handle_stop_sequences(settings['until'], eos=None)
        room = self.max_length if self.apart else self.max_length - limit
        if room < 1:
            fix = 'Set max_length in model_args, or max_gen_toks in gen_kwargs'
            raise UserError(f'max_gen_toks={limit} leaves no room for the context in {self.max_length} tokens. {fix}.')
        prompts = [self.tok_encode(text)[-room:] or [self.prefix_token_id] for text in contexts]
        written: list[list[int]] = [[] for _ in prompts]
        waiting, length = list(range(len(prompts))), _FIRST_ROUND if decoding.greedy and not self.apart else limit
        while waiting:
            length = min(length, limit - len(written[waiting[0]]))
            inputs = [prompts[i] + written[i] for i in waiting]
            now, waiting = waiting, []
            for i, (one,) in zip(now, self._continue(inputs, length, decoding, [rows[i] for i in now]), strict=True):
                written[i] += one.tokens.tolist()
                if not one.ended and len(written[i]) < limit and not any(x in self._text(written[i]) for x in stops):
                    waiting.append(i)
            update(len(now) - len(waiting))
            length *= 2
        return [postprocess_generated_text(self._text(ids), stops, None) for ids in written]

    def _continue(self, inputs: Sequence[list[int]], length: int, decoding: Decoding, rows: Sequence[int]) -> Any:
        return self.model.generate_ids(
            inputs, length, decoding=decoding, rows=rows, started=not self.apart, end_id=self.eot_token_id
        )

    def _decoding(self, settings: Mapping[str, Any]) -> Decoding:
        """lm-eval's generation settings as ours.

        Raises:
            UserError: there is a setting that we lack.
        """
        ours = {name: settings[name] for name in ('temperature', 'top_k', 'top_p') if settings.get(name) is not None}
        ours = {**ours, 'temperature': ours.get('temperature', 0.0) if settings['do_sample'] else 0.0}
        for name, value in settings.items():
            if name not in (*ours, *_IGNORED) and value not in (None, _NEUTRAL.get(name)):
                raise UserError(f'gen_kwargs have {name}={value}, which t5flan lacks. Remove it from the task.')
        return Decoding(**ours, seed=self.seed, batch_size=self.batch_size)

    def _text(self, ids: Sequence[int]) -> str:
        """The text of new tokens, without special tokens, up to the end of sequence."""
        vocabulary = self.model.vocabulary
        end = next((i for i, id in enumerate(ids) if id in (self.eot_token_id, vocabulary.eos_id)), len(ids))
        return vocabulary.decode([id for id in ids[:end] if not vocabulary.is_special(id)])

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results: parameters, dtype and step."""
        parameters = sum(x.size for x in jax.tree.leaves(self.model.model))
        config = self.model.config
        return {'model_num_parameters': parameters, 'model_dtype': config.dtype, 'model_step': self.model.step}


def command_line(arguments: Sequence[str]) -> None:
    """Runs lm-eval's command line, which knows the model `t5flan` here.

    Raises:
        UserError: lm-eval refuses an argument.
    """
    ours, sys.argv = sys.argv, ['t5flan lm_eval', *arguments]
    theirs = argparse.ArgumentParser.error
    setattr(argparse.ArgumentParser, 'error', _refuse)  # noqa: B010 (it prints two lines and exits)
    try:
        lm_eval.__main__.cli_evaluate()
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not {'_cli', 'config'} & set(Path(last).parts):  # else it is about the arguments
            raise
        problem = ' '.join(str(error).split()).rstrip('.')
        raise UserError(f'lm-eval: {problem}. `t5flan lm_eval run --help` lists its arguments') from None
    finally:
        sys.argv = ours
        setattr(argparse.ArgumentParser, 'error', theirs)  # noqa: B010


def _refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    raise UsageError(f'lm-eval: {message}. `t5flan lm_eval run --help` lists its arguments')


def default_max_length(model: LanguageModel) -> int:
    """The tokens that a model reads at most, unless the user says otherwise; see `HarnessModel`."""
    for name, fields in (
        ('config.json', ('n_positions', 'max_position_embeddings', 'n_ctx')),
        ('tokenizer_config.json', ('model_max_length',)),
    ):
        file = to_path(f'{model.folder}/huggingface/{name}')
        settings = read_object(file) if model.folder and file.is_file() else {}
        found = next((settings[one] for one in fields if isinstance(settings.get(one), int | float)), 0)
        if 0 < found < 10**9:  # a tokenizer without a limit states 10^30
            return int(found)
    lengths = model.feature_lengths.values()
    return max([_LEAST_MAX_LENGTH, max(lengths, default=0) if model.format == 'encoder_decoder' else sum(lengths)])


def _open_end(text: str, last: str) -> str:
    """The text up to the end of the last message, as transformers' `continue_final_message`."""
    place = text.rfind(last.strip())
    if place < 0:
        raise UserError('the chat template leaves out the last message, so it cannot be continued. Remove gen_prefix.')
    kept = last.lstrip()
    return text[: place + len(kept if text[place : place + len(kept)] == kept else last.strip())]


def _advance(bar: Any) -> Callable[[int], None]:
    """Moves a progress bar to a number of finished requests."""
    return lambda done: bar.update(done - bar.n) and None


def _positive(name: str, value: Any) -> int:
    if not str(value).isdecimal() or int(value) < 1:
        raise UserError(f'{name}={value!r}, expected an integer of 1 or more. Set {name} in model_args.')
    return int(value)
