"""How text methods are judged: their responses to test prompts, and what they make of responses kept apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.language_model import LanguageModel, Sampled
from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import Scored, sampled_kl
from offon.benchmark.text_reward import Scorer
from offon.benchmark.words import Coder, distinct

BLOCK = 256  # rows of a forward pass outside training
Metrics = dict[str, list[float]]  # one number per seed
Columns = tuple[Tensor, Tensor, Tensor, Tensor]  # prompts and mask [N, P], responses and mask [N, T]


@dataclass(frozen=True)
class Asked:
    """Prompts, as text and as numbers."""

    last: list[str]  # what the user said last, which scorers see
    numbers: Tensor  # [N, P]
    mask: Tensor


@dataclass(frozen=True)
class Judge:
    """Who generates with which numbers of whom, and who scores."""

    seeds: Sequence[int]
    coder: Coder
    scorers: Mapping[str, Scorer]  # the first is the reward
    greedy: bool = False

    def generate(self, model: LanguageModel, asked: Asked, name: str) -> tuple[list[list[str]], Sampled]:
        """One response to each prompt: texts [R][N], and how they were drawn."""
        noise = Noise(self.seeds, f"text/sample/{name}", asked.numbers.device, chunk=1)
        noise.begin_chunk(0)
        prompt, mask = (part.expand(len(self.seeds), *part.shape) for part in (asked.numbers, asked.mask))
        drawn = model.sample(prompt, mask, self.coder.end, noise, self.greedy)
        return [[self.coder.text(row) for row in rows] for rows in drawn.numbers.tolist()], drawn

    def rewards(self, asked: Asked, texts: list[list[str]]) -> Tensor:
        """Of responses [R][N] to prompts: [R, N]."""
        return torch.tensor([self.scorer(asked.last, each) for each in texts])

    @property
    def scorer(self) -> Scorer:
        """The reward."""
        return next(iter(self.scorers.values()))

    @torch.no_grad()
    def judge(
        self, model: LanguageModel, reference: LanguageModel, test: Asked, held: Columns, held_reference: Tensor
    ) -> tuple[Metrics, Tensor, list[list[str]]]:
        """Reward, diversity, length and drift, a number for each seed; rewards [R, N] of all responses; and these."""
        texts, drawn = self.generate(model, test, "test")
        rewards = self.rewards(test, texts)
        replicas = len(self.seeds)
        nothing = torch.zeros(drawn.mask.shape[:-1], device=drawn.mask.device)
        asked, asked_mask = (part.expand(replicas, *part.shape) for part in (test.numbers, test.mask))
        there = reference.log_prob(asked, asked_mask, drawn.numbers, drawn.mask)
        k1, k3 = sampled_kl(Scored(drawn.log_prob, there, drawn.mask, nothing, nothing))
        words = [[text.split() for text in each] for each in texts]
        own, inside = log_probs(model, held, replicas), held[3]
        found: Metrics = {
            "reward": rewards.mean(-1).tolist(),
            "length": [sum(map(len, each)) / len(each) for each in words],
            "entropy": ((drawn.entropy * drawn.mask).sum((-2, -1)) / drawn.mask.sum((-2, -1))).tolist(),
            "kl_k1": k1.tolist(),
            "kl_k3": k3.tolist(),
            "log_ratio": ((own - held_reference) * inside).sum(-1).mean(-1).tolist(),
            "nll": (-(own * inside).sum((-2, -1)) / inside.sum()).tolist(),
        }
        for name, scorer in list(self.scorers.items())[1:]:
            found[f"reward_{name}"] = torch.tensor([scorer(test.last, each) for each in texts]).mean(-1).tolist()
        for n in (1, 2, 3):
            found[f"distinct_{n}"] = [distinct(each, n) for each in words]
            found[f"distinct_{n}_of_words"] = [distinct(each, n, by_words=True) for each in words]
        return found, rewards, texts


@torch.no_grad()
def log_probs(model: LanguageModel, columns: Columns, replicas: int) -> Tensor:
    """Of responses [N, T] to prompts: [R, N, T]."""
    found = []
    for block in zip(*(column.split(BLOCK) for column in columns), strict=True):
        found.append(model.log_prob(*(part.expand(replicas, *part.shape) for part in block)))
    return torch.cat(found, 1)
