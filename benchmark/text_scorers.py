"""Who scores responses in a text benchmark, and how far each agrees with stored scores of responses kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from offon.benchmark.text_reward import Scorer, vader
from offon.benchmark.text_settings import TextSettings
from offon.datasets.dialogues import Dialogues


class Scorers:
    """The scorers that settings name; the first is the reward."""

    def __init__(self, settings: TextSettings, dialogues: Dialogues) -> None:
        self._dialogues = dialogues
        self._made: dict[str, Scorer] = {"vader": vader()}
        self.described = {
            "vader": f"VADER {version('vaderSentiment')}, (compound + 1) / 2, of the words that the model can see"
        }

    def used(self) -> Mapping[str, Scorer]:
        """By name."""
        return self._made

    def agreement(self) -> dict[str, Any]:
        """Of each, with the stored scores of responses that nothing was fitted to."""
        return {name: agreement(scorer, self._dialogues) for name, scorer in self._made.items()}


def agreement(scorer: Scorer, dialogues: Dialogues) -> dict[str, Any]:
    """Correlation with the stored scores of dev and test, and how often the better of two responses is found.

    None where stored scores do not differ, and where no prompt has two.
    """
    kept = [each for part in ("dev", "test") for each in dialogues.of(part)]
    stored = np.array([each.reward for each in kept])
    scored = np.array(scorer([each.prompt for each in kept], [each.text for each in kept]))
    pearson = None
    if min(stored.std(), scored.std()) > 0:
        pearson = float(np.corrcoef(stored, scored)[0, 1])
    by_prompt: dict[tuple[str, ...], list[int]] = {}
    for place, each in enumerate(kept):
        by_prompt.setdefault(each.turns, []).append(place)
    pairs = [places for places in by_prompt.values() if len(places) == 2 and np.ptp(stored[places]) > 0]
    order = None
    if pairs:
        first, second = np.array(pairs).T
        same = np.sign(stored[first] - stored[second]) * np.sign(scored[first] - scored[second])
        order = float((0.5 * (1.0 + same)).mean())  # ties count half
    return {"pearson": pearson, "order": order, "responses": len(kept)}
