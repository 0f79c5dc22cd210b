"""Who scores responses in a text benchmark, and how far each agrees with stored scores of responses kept apart."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np

from offon.benchmark.text_models import Loaded
from offon.benchmark.text_reward import Scorer, ridge, vader
from offon.benchmark.text_reward_head import head
from offon.benchmark.text_settings import TextSettings
from offon.datasets.dialogues import Dialogues

DESCRIBED = {
    "ridge": "a TF-IDF ridge fitted to the stored scores of the train prompts",
    "head": "a linear head on the pre-trained model's features, fitted to the stored scores of half the train prompts",
}


def described(settings: TextSettings) -> dict[str, str]:
    """The scorers that settings name, in words; the first is the reward."""
    found = dict(DESCRIBED)
    if "vader" in settings.scorers:
        vader()  # says so if it is not installed
        of = "of the words that the model can see"
        found["vader"] = f"VADER {version('vaderSentiment')}, (compound + 1) / 2, {of}"
    return {name: found[name] for name in settings.scorers}


def made(settings: TextSettings, dialogues: Dialogues, loaded: Loaded | None) -> dict[str, Scorer]:
    """The scorers that settings name, fitted where they need it.

    Args:
        settings: say which.
        dialogues: what they are fitted to.
        loaded: the pre-trained model, where there is one.
    """
    found = {}
    for name in settings.scorers:
        if name == "vader":
            found[name] = vader()
        elif name == "ridge":
            found[name] = ridge(dialogues)
        else:
            assert loaded is not None  # the settings were checked
            found[name] = head(settings, dialogues, loaded.made(settings, 0))
    return found


def agreements(scorers: Mapping[str, Scorer], dialogues: Dialogues) -> dict[str, Any]:
    """Of each, with the stored scores of responses that nothing was fitted to."""
    return {name: agreement(scorer, dialogues) for name, scorer in scorers.items()}


def agreement(scorer: Scorer, dialogues: Dialogues) -> dict[str, Any]:
    """Correlation with the stored scores of dev and test, and how often the better of two responses is found.

    None where scores do not differ, and where no prompt has two responses that do.
    """
    kept = [each for part in ("dev", "test") for each in dialogues.of(part)]
    stored = np.array([each.reward for each in kept])
    scored = np.array(scorer([each.prompt for each in kept], [each.text for each in kept]))
    pearson = None
    if min(stored.std(), scored.std()) > 1e-9:
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
