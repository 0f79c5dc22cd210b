"""Rewards of text that need no model: how positive it sounds, by VADER's word list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]  # prompts' last turns, responses -> rewards in [0, 1]


def vader() -> Scorer:
    """(compound + 1) / 2 of VADER (Hutto and Gilbert, 2014): sentiment, not quality; the same digits everywhere.

    Raises:
        ValueError: if the extra is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ValueError("the reward of `offon text` needs vaderSentiment: pip install 'offon[text]'") from error
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [0.5 * (analyzer.polarity_scores(text)["compound"] + 1.0) for text in texts]

    return score
