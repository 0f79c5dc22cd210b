"""Rewards of text that need no language model: VADER's word list, and a linear student of stored scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from offon.datasets.dialogues import Dialogues, Response

Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts' last turns, responses -> rewards in [0, 1]
ENV = "text/"  # what the names of rewards begin with where other tasks name a simulator
HEAD = "head"  # the one that needs a pre-trained model
PACKAGES = {"vader": "vaderSentiment", "ridge": "scikit-learn", HEAD: "transformers"}  # rewards, and what gives them

DESCRIBED = {
    "vader": "VADER, (compound + 1) / 2",
    "ridge": "a TF-IDF ridge fitted to the stored scores of the train prompts",
    "head": "a linear head on the pre-trained model's features, fitted to the stored scores of half the train prompts",
}


def vader() -> Scorer:
    """(compound + 1) / 2 of VADER (Hutto and Gilbert, 2014): sentiment, not quality; the same digits everywhere.

    Raises:
        ValueError: if the extra is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ValueError("data.reward=vader needs vaderSentiment: pip install 'offon[text]'") from error
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [0.5 * (analyzer.polarity_scores(text)["compound"] + 1.0) for text in texts]

    return score


def ridge(dialogues: Dialogues) -> Scorer:
    """A linear student of the stored scores of train: words and pairs of words of a response, words of what was asked.

    Ridge regression of the scores' logits on TF-IDF weights and four lengths; a lexical proxy of the model that scored.

    Raises:
        ValueError: if scikit-learn is not installed, or stored scores are no probabilities.
    """
    try:
        from scipy.sparse import csr_matrix, hstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge
    except ImportError as error:
        raise ValueError("data.reward=ridge needs scikit-learn: pip install 'offon[text]'") from error
    logged = dialogues.of("train")
    of_response, of_prompt = (
        TfidfVectorizer(ngram_range=grams, min_df=2, sublinear_tf=True).fit(texts)
        for grams, texts in (((1, 2), [each.text for each in logged]), ((1, 1), [each.prompt for each in logged]))
    )
    typical = _lengths([each.prompt for each in logged], [each.text for each in logged])
    middle, spread = typical.mean(0), typical.std(0) + 1e-9

    def features(prompts: Sequence[str], texts: Sequence[str]) -> Any:
        lengths = csr_matrix((_lengths(prompts, texts) - middle) / spread)
        return hstack([of_response.transform(texts), of_prompt.transform(prompts), lengths]).tocsr()

    model = Ridge(alpha=3.0, random_state=0)
    model.fit(features([each.prompt for each in logged], [each.text for each in logged]), logits(logged))

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        found: list[float] = (1.0 / (1.0 + np.exp(-model.predict(features(prompts, texts))))).tolist()
        return found

    return score


def logits(responses: Sequence[Response]) -> np.ndarray:
    """Of stored scores, within -6 ... 6; ValueError if one is no probability."""
    within = np.clip(stored_scores(responses), 0.0025, 0.9975)
    return np.log(within / (1.0 - within))


def stored_scores(responses: Sequence[Response]) -> np.ndarray:
    """Of logged responses; ValueError if one is no probability."""
    stored = np.array([each.reward for each in responses])
    if ((stored < 0) | (stored > 1)).any():
        found = f"{stored.min():g} ... {stored.max():g}"
        raise ValueError(f"expected stored scores in [0, 1], found {found}; map the rewards of your data into it")
    return stored


def _lengths(prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Letters, words and letters a word of responses, words of prompts: [N, 4]."""
    letters, words = (np.array([len(part) for part in parts], float) for parts in (texts, [t.split() for t in texts]))
    asked = np.array([len(text.split()) for text in prompts], float)
    return np.stack([np.log1p(letters), np.log1p(words), np.log1p(asked), letters / np.maximum(words, 1.0)], 1)


def reward_version(name: str) -> str:
    """The version of the package that gives a reward; empty where it is not installed."""
    try:
        return version(PACKAGES[name])
    except PackageNotFoundError:
        return ""


def in_words(agreement: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a report says of `agreement` of each scorer, by its name."""
    lines = []
    for name, facts in agreement.items():
        called = f"{name} ({DESCRIBED[name]})" if name in DESCRIBED else name
        if facts["pearson"] is None:
            lines.append(f"{called}: the stored scores of responses kept apart, or its own, do not differ")
            continue
        order = "" if facts["order"] is None else f", order of pairs {facts['order']:.3f}"
        against = f"the stored scores of {facts['responses']} responses kept apart"
        lines.append(f"{called}: r {facts['pearson']:.3f} with {against}{order}")
    return lines
