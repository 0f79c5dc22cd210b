"""A trained reward: one linear output on what a pre-trained language model makes of prompt and response."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from offon.benchmark.text_judge import BLOCK
from offon.benchmark.text_models import Made
from offon.benchmark.text_reward import Scorer, logits
from offon.benchmark.text_settings import TextSettings
from offon.datasets.dialogues import Dialogues, for_scorer

PENALTY = 0.1  # of standardised weights, in rows' squared errors a row


def head(settings: TextSettings, dialogues: Dialogues, made: Made) -> Scorer:
    """Ridge regression of stored scores' logits on the frozen model's last hidden states.

    The features are their mean over the response and the last of them. It is fitted to half of the train prompts; no
    policy is trained on these, so that a policy cannot learn what the head learned by heart.
    """
    logged = [each for each in dialogues.of("train") if for_scorer(each.prompt)]
    x = _features(settings, made, [each.prompt for each in logged], [each.text for each in logged]).double()
    y = torch.tensor(logits(logged))
    middle, spread, level = x.mean(0), x.std(0) + 1e-6, y.mean()
    x = (x - middle) / spread
    square = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(square, x.T @ (y - level))

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        found = (_features(settings, made, prompts, texts).double() - middle) / spread
        return torch.sigmoid(found @ weight + level).tolist()

    return score


@torch.no_grad()
def _features(settings: TextSettings, made: Made, prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    """[N, 2 d], on the CPU."""
    asked, inside = made.coder.prompts([[prompt] for prompt in prompts], settings.prompt_words)
    answer, mask = made.coder.responses(texts, settings.response_words)
    found = []
    for parts in zip(*(part.split(BLOCK) for part in (asked, inside, answer, mask)), strict=True):
        prompt, before, response, of = (part.to(made.device) for part in parts)
        hidden = made.model.features(torch.cat((prompt, response), 1)[None], torch.cat((before, of), 1)[None])[0]
        hidden = hidden[:, prompt.shape[1] :]
        last = (of.sum(1) - 1).long()
        mean = (hidden * of[..., None]).sum(1) / of.sum(1, keepdim=True)
        found.append(torch.cat((mean, hidden[torch.arange(len(hidden)), last]), 1).cpu())
    return torch.cat(found)
