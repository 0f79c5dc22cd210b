"""Who scores responses in a text benchmark, and how far each agrees with stored scores of responses kept apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from offon.benchmark.text_options import TextOptions
from offon.benchmark.text_reward import Scorer, ridge, vader
from offon.benchmark.text_reward_head import head
from offon.benchmark.words import Coder
from offon.datasets.dialogues import Dialogues


def make_scorers(
    options: TextOptions, dialogues: Dialogues, coder: Coder | None, net: Any, device: str
) -> dict[str, Scorer]:
    """The scorers that options name, fitted where they need it.

    Args:
        options: say which; the first is the reward.
        dialogues: what they are fitted to.
        coder: of the pre-trained model, where there is one.
        net: that model.
        device: where it computes features.
    """
    found = {}
    for name in options.scorers:
        if name == "vader":
            found[name] = vader()
        elif name == "ridge":
            found[name] = ridge(dialogues)
        else:
            assert coder is not None  # the options were checked
            found[name] = head(options, dialogues, coder, net, device)
    return found


def agreement(scorer: Scorer, dialogues: Dialogues) -> dict[str, Any]:
    """Correlation with the stored scores of dev and test, and how often the better of two responses is found.

    None where scores do not differ, and where no prompt has two responses that do.
    """
    kept = [each for part in ("dev", "test") for each in dialogues.of(part)]
    stored = np.array([each.reward for each in kept])
    scored = np.array(scorer([each.prompt for each in kept], [each.text for each in kept]))
    pearson = None
    if min(stored.std(), scored.std()) > 1e-9:
        pearson = round(float(np.corrcoef(stored, scored)[0, 1]), 6)
    by_prompt: dict[tuple[str, ...], list[int]] = {}
    for place, each in enumerate(kept):
        by_prompt.setdefault(each.turns, []).append(place)
    pairs = [places for places in by_prompt.values() if len(places) == 2 and np.ptp(stored[places]) > 0]
    order = None
    if pairs:
        first, second = np.array(pairs).T
        same = np.sign(stored[first] - stored[second]) * np.sign(scored[first] - scored[second])
        order = round(float((0.5 * (1.0 + same)).mean()), 6)  # ties count half
    return {"pearson": pearson, "order": order, "responses": len(kept)}
