"""Small transformer language models with a leading replica axis R: R models of one shape train in one program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.language_model import Sampled
from offon.algorithms.nn import Adam, generator_of
from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import pick
from offon.algorithms.stacked import look_up
from offon.algorithms.transformer import Block, Cache, LayerNorm


@dataclass(frozen=True)
class Shape:
    """Of a model; weights of the first and the last layer are one."""

    vocabulary: int
    prompt: int  # longest prompt, padded on the left
    response: int  # longest response, padded on the right
    width: int = 64
    layers: int = 2
    heads: int = 4


class WordModel(torch.nn.Module):
    """Pre-norm transformer decoders over words; positions are counted from the first word that is no padding."""

    def __init__(self, seeds: Sequence[int], name: str, shape: Shape) -> None:
        super().__init__()
        self.shape, self.width = shape, shape.width

        def table(part: str, entries: int) -> torch.nn.Parameter:
            drawn = [torch.randn(entries, shape.width, generator=generator_of(seed, name, part)) for seed in seeds]
            return torch.nn.Parameter(0.02 * torch.stack(drawn))

        self.words = table("words", shape.vocabulary)
        self.places = table("places", shape.prompt + shape.response)
        self.blocks = torch.nn.ModuleList(
            Block(seeds, f"{name}/{layer}", shape.width, shape.heads, dropout=0.0) for layer in range(shape.layers)
        )
        self.last_norm = LayerNorm(len(seeds), shape.width)

    def log_prob(self, prompt: Tensor, prompt_mask: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [R, B, T] of the words of responses [R, B, T] after prompts [R, B, P]; masks are 1 inside.

        What stands where the mask is 0 has no meaning.
        """
        numbers, inside = torch.cat((prompt, response), -1), torch.cat((prompt_mask, mask), -1)
        hidden = self._hidden(numbers, inside)
        logits = self._logits(hidden[:, :, prompt.shape[-1] - 1 : -1])
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 2), response.flatten(), reduction="none")
        return -losses.view(response.shape)

    def features(self, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        """What the last layer makes of prompts [R, B, P]: [R, B, P, d]."""
        return self._hidden(prompt, prompt_mask)

    @torch.no_grad()
    def sample(self, prompt: Tensor, prompt_mask: Tensor, end: int, noise: Noise, greedy: bool = False) -> Sampled:
        """A response to each prompt [R, N, P], drawn word by word until `end`; or the likeliest words."""
        replicas, rows, length = prompt.shape
        shape = self.shape
        inside = torch.cat((prompt_mask, prompt_mask.new_zeros(replicas, rows, shape.response)), -1)
        caches = [Cache() for _ in self.blocks]
        last = self._hidden(prompt, inside[..., :length], caches)[:, :, -1:]
        going = torch.ones(replicas, rows, dtype=torch.bool, device=prompt.device)
        found: dict[str, list[Tensor]] = {"numbers": [], "mask": [], "log_prob": [], "entropy": []}
        for step in range(shape.response):
            log_prob = torch.log_softmax(self._logits(last).squeeze(2), -1)
            if greedy:
                chosen = log_prob.argmax(-1, keepdim=True)  # [R, N, 1]
            else:
                chosen = pick(log_prob.exp(), noise.uniform(f"word{step}", rows, 1))
            found["numbers"].append(chosen.squeeze(-1))
            found["mask"].append(going.to(log_prob.dtype))
            found["log_prob"].append(log_prob.gather(-1, chosen).squeeze(-1))
            found["entropy"].append(-(log_prob.exp() * log_prob).sum(-1))
            inside[..., length + step] = going.to(inside.dtype)
            going = going & (chosen.squeeze(-1) != end)
            if step + 1 < shape.response:
                last = self._hidden(chosen, inside[..., : length + step + 1], caches)
        return Sampled(**{name: torch.stack(values, -1) for name, values in found.items()})

    def branch(self, name: str) -> WordModel:
        """A copy that can be trained."""
        return copy.deepcopy(self).requires_grad_(True)

    def freeze(self) -> None:
        """Nothing of it will be trained any more."""
        self.requires_grad_(False)

    def optimizer(self, lr: float, max_grad_norm: float) -> Adam:
        """Over all weights."""
        return Adam([self], lr, max_grad_norm=max_grad_norm)

    def state(self) -> dict[str, Tensor]:
        """All weights."""
        return self.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over weights."""
        self.load_state_dict(state)

    def _hidden(self, numbers: Tensor, inside: Tensor, caches: Sequence[Cache] | None = None) -> Tensor:
        """Features [R, B, L, d] of words [R, B, L], the last ones of those whose mask is `inside` [R, B, n].

        The others are in the caches, one for each block, and so are these afterwards.
        """
        stop = inside.shape[-1]
        first = stop - numbers.shape[-1]
        place = (inside.long().cumsum(-1) - 1).clamp(min=0)[..., first:]
        x = look_up(self.words, numbers) + look_up(self.places, place)
        there = torch.arange(stop, device=numbers.device)
        here = there[first:, None]
        # a word sees itself, so that padding is no empty row
        seen = (((there <= here) & (inside[:, :, None] > 0)) | (there == here)).flatten(0, 1)[:, None]
        for number, block in enumerate(self.blocks):
            x = block(x, seen, None, None if caches is None else caches[number])
        found: Tensor = self.last_norm(x)
        return found

    def _logits(self, hidden: Tensor) -> Tensor:
        replicas, rows, length, _ = hidden.shape
        return torch.bmm(hidden.flatten(1, 2), self.words.transpose(1, 2)).view(replicas, rows, length, -1)
