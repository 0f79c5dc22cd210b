"""Small transformer language models with a leading replica axis R: R models of one shape train in one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import pick
from offon.counter import key_of


@dataclass(frozen=True)
class Shape:
    """Of a model; weights of the first and the last layer are one."""

    vocabulary: int
    prompt: int  # longest prompt, padded on the left
    response: int  # longest response, padded on the right
    width: int = 64
    layers: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        """Refuses heads of unequal width."""
        if self.width % self.heads:
            raise ValueError(f"expected a width that {self.heads} heads share evenly, got {self.width}")


@dataclass(frozen=True)
class Sampled:
    """Responses that a model has drawn, up to and with the end; [R, N, T] each."""

    numbers: Tensor
    mask: Tensor
    log_prob: Tensor
    entropy: Tensor  # of the distribution each word was drawn from


class WordModel(torch.nn.Module):
    """Pre-norm transformer decoders over words; positions are counted from the first word that is no padding."""

    def __init__(self, seeds: Sequence[int], name: str, shape: Shape) -> None:
        super().__init__()
        self.seeds, self.name, self.shape = tuple(seeds), name, shape
        width, replicas = shape.width, len(self.seeds)

        def normal(part: str, *size: int) -> torch.nn.Parameter:
            drawn = []
            for seed in self.seeds:
                key = key_of(seed, "init", name, part) & 0x7FFFFFFFFFFFFFFF
                drawn.append(torch.randn(*size, generator=torch.Generator().manual_seed(key)) * 0.02)
            return torch.nn.Parameter(torch.stack(drawn))

        def flat(value: float, size: int) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.full((replicas, 1, size), value))

        self.words = normal("words", shape.vocabulary, width)
        self.places = normal("places", shape.prompt + shape.response, width)
        self.layers = torch.nn.ModuleList()
        for number in range(shape.layers):
            layer = torch.nn.ParameterDict()
            for part, fan_in, fan_out in (
                ("attend", width, 3 * width),
                ("joined", width, width),
                ("up", width, 4 * width),
                ("down", 4 * width, width),
            ):
                layer[part] = normal(f"{part}{number}", fan_in, fan_out)
                layer[f"{part}_bias"] = flat(0.0, fan_out)
            for part in ("first", "second"):
                layer[f"{part}_scale"], layer[f"{part}_shift"] = flat(1.0, width), flat(0.0, width)
            self.layers.append(layer)
        self.last_scale, self.last_shift = flat(1.0, width), flat(0.0, width)

    def log_prob(self, prompt: Tensor, prompt_mask: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [R, B, T] of the words of responses [R, B, T] after prompts [R, B, P]; masks are 1 inside.

        What stands where the mask is 0 has no meaning.
        """
        numbers, inside = torch.cat((prompt, response), -1), torch.cat((prompt_mask, mask), -1)
        hidden = self._hidden(numbers, inside, None, 0)
        logits = self._logits(hidden[:, :, prompt.shape[-1] - 1 : -1])
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 2), response.flatten(), reduction="none")
        return -losses.view(response.shape)

    def features(self, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        """What the last layer makes of prompts [R, B, P]: [R, B, P, d]."""
        return self._hidden(prompt, prompt_mask, None, 0)

    @torch.no_grad()
    def sample(self, prompt: Tensor, prompt_mask: Tensor, end: int, noise: Noise) -> Sampled:
        """A response to each prompt [R, N, P], drawn word by word until `end`."""
        replicas, rows, length = prompt.shape
        shape = self.shape
        inside = torch.cat((prompt_mask, prompt_mask.new_zeros(replicas, rows, shape.response)), -1)
        size = (replicas * rows, shape.heads, length + shape.response, shape.width // shape.heads)
        cache = [(self.words.new_zeros(size), self.words.new_zeros(size)) for _ in self.layers]
        hidden = self._hidden(prompt, inside[..., :length], cache, 0)
        last = hidden[:, :, -1:]
        going = torch.ones(replicas, rows, dtype=torch.bool, device=prompt.device)
        found: dict[str, list[Tensor]] = {"numbers": [], "mask": [], "log_prob": [], "entropy": []}
        for step in range(shape.response):
            log_prob = torch.log_softmax(self._logits(last).squeeze(2), -1)
            chosen = pick(log_prob.exp(), noise.uniform(f"word{step}", rows, 1))  # [R, N, 1]
            found["numbers"].append(chosen.squeeze(-1))
            found["mask"].append(going.to(log_prob.dtype))
            found["log_prob"].append(log_prob.gather(-1, chosen).squeeze(-1))
            found["entropy"].append(-(log_prob.exp() * log_prob).sum(-1))
            inside[..., length + step] = going.to(inside.dtype)
            going = going & (chosen.squeeze(-1) != end)
            if step + 1 < shape.response:
                last = self._hidden(chosen, inside[..., : length + step + 1], cache, length + step)
        return Sampled(**{name: torch.stack(values, -1) for name, values in found.items()})

    def _hidden(self, numbers: Tensor, inside: Tensor, cache: list[tuple[Tensor, Tensor]] | None, first: int) -> Tensor:
        """Features [R, B, L, d] of words [R, B, L] that stand from `first` on; mask `inside` [R, B, first + L].

        With a cache, keys and values of earlier words are read from it, and those of these are added.
        """
        replicas, rows, length = numbers.shape
        stop = first + length
        place = (inside.cumsum(-1) - 1.0).clamp(min=0.0).long()[..., first:]
        x = self._look_up(self.words, numbers) + self._look_up(self.places, place)
        here = torch.arange(first, stop, device=numbers.device)[:, None]
        there = torch.arange(stop, device=numbers.device)
        # a word sees itself, so that padding is no empty row
        seen = ((there <= here) & (inside[:, :, None] > 0)) | (there == here)
        seen = seen.flatten(0, 1)[:, None]
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, torch.nn.ParameterDict)
            x = x + self._attention(x, layer, seen, None if cache is None else cache[number], first)
            y = _normalized(x, layer["second_scale"], layer["second_shift"])
            up = torch.nn.functional.gelu(_linear(y, layer["up"], layer["up_bias"]))
            x = x + _linear(up, layer["down"], layer["down_bias"])
        return _normalized(x, self.last_scale, self.last_shift)

    def _attention(
        self,
        x: Tensor,
        layer: torch.nn.ParameterDict,
        seen: Tensor,
        cache: tuple[Tensor, Tensor] | None,
        first: int,
    ) -> Tensor:
        replicas, rows, length, width = x.shape
        y = _normalized(x, layer["first_scale"], layer["first_shift"])
        mixed = _linear(y, layer["attend"], layer["attend_bias"])
        parts = mixed.view(replicas * rows, length, 3, self.shape.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        if cache is not None:
            for kept, new in zip(cache, (key, value), strict=True):
                kept[:, :, first : first + length] = new
            key, value = (kept[:, :, : first + length] for kept in cache)
        found = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        joined = found.transpose(1, 2).reshape(replicas, rows, length, width)
        return _linear(joined, layer["joined"], layer["joined_bias"])

    def _look_up(self, table: Tensor, numbers: Tensor) -> Tensor:
        offset = torch.arange(len(table), device=table.device).view(-1, 1, 1) * table.shape[1]
        return torch.nn.functional.embedding(numbers + offset, table.flatten(0, 1))

    def _logits(self, hidden: Tensor) -> Tensor:
        replicas, rows, length, _ = hidden.shape
        return torch.bmm(hidden.flatten(1, 2), self.words.transpose(1, 2)).view(replicas, rows, length, -1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[R, B, L, in] by weights [R, in, out] and biases [R, 1, out]."""
    return torch.baddbmm(bias, x.flatten(1, 2), weight).view(*x.shape[:3], -1)


def _normalized(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:]) * scale[:, None] + shift[:, None]
