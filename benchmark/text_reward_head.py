"""A trained reward: one linear output on what a pre-trained language model makes of prompt and response."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from offon.algorithms.pretrained import Pretrained, Tuning
from offon.benchmark.text_judge import BLOCK
from offon.benchmark.text_options import TextOptions
from offon.benchmark.text_reward import Scorer, logits
from offon.benchmark.words import Coder
from offon.datasets.dialogues import Dialogues, for_scorer

PENALTY = 0.1  # of standardised weights, in rows' squared errors a row


def head(options: TextOptions, dialogues: Dialogues, coder: Coder, net: Any, device: str) -> Scorer:
    """Ridge regression of stored scores' logits on the frozen model's last hidden states, float32.

    The features are their mean over the response and the last of them. It is fitted to half of the train prompts; no
    policy is trained on these, so that a policy cannot learn what the head learned by heart.

    Raises:
        ValueError: if stored scores are no probabilities.
    """
    own = copy.deepcopy(net).to(device)  # the data's stays where it is
    model = Pretrained(own, options.response_words, Tuning(rank=0), seed=0)

    @torch.no_grad()
    def features(prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
        """[N, 2 d], on the CPU."""
        asked = coder.prompts([[prompt] for prompt in prompts], options.prompt_words)
        answers = coder.responses(texts, options.response_words)
        found = []
        for parts in zip(*(part.split(BLOCK) for part in (*asked, *answers)), strict=True):
            prompt, before, response, of = (part.to(device) for part in parts)
            hidden = model.features(torch.cat((prompt, response), 1)[None], torch.cat((before, of), 1)[None])[0]
            hidden = hidden[:, prompt.shape[1] :]
            last = (of.sum(1) - 1).long()
            mean = (hidden * of[..., None]).sum(1) / of.sum(1, keepdim=True)
            found.append(torch.cat((mean, hidden[torch.arange(len(hidden), device=last.device), last]), 1).cpu())
        return torch.cat(found).double()

    logged = [each for each in dialogues.of("train") if for_scorer(each.prompt)]
    x = features([each.prompt for each in logged], [each.text for each in logged])
    y = torch.tensor(logits(logged))
    middle, spread, level = x.mean(0), x.std(0) + 1e-6, y.mean()
    x = (x - middle) / spread
    square = x.T @ x + PENALTY * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(square, x.T @ (y - level))

    def score(prompts: Sequence[str], texts: Sequence[str]) -> list[float]:
        return torch.sigmoid(((features(prompts, texts) - middle) / spread) @ weight + level).tolist()

    return score
