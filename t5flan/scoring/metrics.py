"""Metrics with SeqIO's signatures: fn(targets, predictions) or fn(targets, scores) -> {name: number}, in percent.

A target is the result of the task's postprocess_fn: a string, or a sequence of strings any of which is right.
"""

import collections
import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.answers import extract_number, normalize_answer, normalize_space

Target = str | Sequence[str]


def exact_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Predictions equal to (one of) their targets up to spaces; case and punctuation count.

    >>> exact_match(['12', ['yes', 'Yes']], ['12 ', 'Yes'])
    {'exact_match': 100.0}
    """
    hits = [
        normalize_space(str(prediction)) in {normalize_space(answer) for answer in _answers(target)}
        for target, prediction in _pairs(targets, predictions)
    ]
    return {'exact_match': _percent(hits)}


def accuracy(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Predictions equal to their target, of any type: for labels (T5's `accuracy`)."""
    return {'accuracy': _percent([target == prediction for target, prediction in _pairs(targets, predictions)])}


def squad(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """SQuAD's exact match and token F1 after normalize_answer: the best over each question's answers.

    >>> squad([['the cat', 'a dog']], ['cat, black white cat'])
    {'em': 0.0, 'f1': 40.0}
    """
    matches, f1s = [], []
    for target, prediction in _pairs(targets, predictions):
        matches.append(max(normalize_answer(answer) == normalize_answer(prediction) for answer in _answers(target)))
        f1s.append(max(token_f1(answer, prediction) for answer in _answers(target)))
    return {'em': _percent(matches), 'f1': _percent(f1s)}


def f1(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F1 of words, as SQuAD's: the best over each question's answers."""
    return {'f1': squad(targets, predictions)['f1']}


def rouge_l(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Mean F-measure of ROUGE-L (https://aclanthology.org/W04-1013) with stemming: the best over each one's answers.

    Raises:
        UserError: the rouge-score library is not installed.
    """
    return {'rouge_l': _percent(rouge_l_each(targets, predictions))}


def rouge_l_each(targets: Sequence[Target], predictions: Sequence[str]) -> list[float]:
    """`rouge_l` of every prediction, in [0, 1]."""
    scorer = _library('rouge_score.rouge_scorer', 'rouge_l').RougeScorer(['rougeL'], use_stemmer=True)
    pairs = _pairs(targets, predictions)
    return [scorer.score_multi(_answers(target), str(text))['rougeL'].fmeasure for target, text in pairs]


def rouge_l_between(words_of: Callable[[str], list[str]]) -> Callable[[str, str], float]:
    """A function that returns the ROUGE-L F-measure of two texts, in [0, 1].

    Args:
        words_of: splits a text into words, in any language.

    Raises:
        UserError: the rouge-score library is not installed.
    """

    class Words:
        def tokenize(self, text: str) -> list[str]:
            return words_of(text)

    scorer = _library('rouge_score.rouge_scorer', 'rouge_l').RougeScorer(['rougeL'], tokenizer=Words())
    return lambda one, other: float(scorer.score(one, other)['rougeL'].fmeasure)


def bleu(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU of sacrebleu (https://aclanthology.org/W18-6319), with all right answers as references.

    Raises:
        UserError: the sacrebleu library is not installed.
    """
    if not predictions:
        return {'bleu': 0.0}
    answers = [_answers(target) for target in targets]
    references = [[one[i] if i < len(one) else None for one in answers] for i in range(max(map(len, answers)))]
    found = _library('sacrebleu', 'bleu').corpus_bleu(list(map(str, predictions)), references)
    return {'bleu': found.score}


def corpus_scores(targets: Sequence[str], predictions: Sequence[str], tokenizer: str = '13a') -> dict[str, float]:
    """Corpus BLEU and chrF of sacrebleu with one reference each, in percent.

    Args:
        tokenizer: how BLEU splits words, as sacrebleu names it: '13a', 'zh', 'char' ...

    Raises:
        UserError: the sacrebleu library is not installed.
    """
    library = _library('sacrebleu', 'bleu')
    references = [list(targets)]
    return {
        'bleu': library.corpus_bleu(list(predictions), references, tokenize=tokenizer).score,
        'chrf': library.corpus_chrf(list(predictions), references).score,
    }


def _library(name: str, metric: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"the metric {metric} needs {name.partition('.')[0]}: pip install 't5flan[metrics]'.") from None


def token_f1(target: str, prediction: str) -> float:
    """Harmonic mean of precision and recall over normalized words, in [0, 1]; 1 for two empty answers."""
    target_words, predicted_words = normalize_answer(target).split(), normalize_answer(prediction).split()
    if not target_words or not predicted_words:
        return float(target_words == predicted_words)
    shared = sum((collections.Counter(target_words) & collections.Counter(predicted_words)).values())
    return 2 * shared / (len(target_words) + len(predicted_words))


def number_match(targets: Sequence[Target], predictions: Sequence[str]) -> dict[str, float]:
    """Predictions whose last number equals that of (one of) their targets: 18, 18.0 and $18 are equal."""
    hits = []
    for target, prediction in _pairs(targets, predictions):
        given = extract_number(str(prediction))
        wanted = {float(number) for answer in _answers(target) if (number := extract_number(answer)) is not None}
        hits.append(given is not None and float(given) in wanted)
    return {'number_match': _percent(hits)}


def log_likelihood(targets: Sequence[Any], scores: Sequence[float]) -> dict[str, float]:
    """Mean log-likelihood of the targets in nats per example (a score function: it takes the model's scores)."""
    pairs = _pairs(targets, scores)
    return {'log_likelihood': math.fsum(float(score) for _, score in pairs) / len(pairs) if pairs else 0.0}


def _answers(target: Target) -> list[str]:
    return [target] if isinstance(target, str) else [str(answer) for answer in target] or ['']


def _pairs(targets: Sequence[Any], predictions: Sequence[Any]) -> list[tuple[Any, Any]]:
    return list(zip(targets, predictions, strict=True))


def _percent(values: Sequence[float]) -> float:
    """100 x the mean; 0 without examples (T5's and SeqIO's metrics divide by zero)."""
    return 100.0 * math.fsum(values) / len(values) if values else 0.0
