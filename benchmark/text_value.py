"""What a text method's reference earns after each logged prompt: one number for all, or a head that sees the prompt.

It responds to prompts that are kept for that; what its responses earn is the value, as in Baheti et al. (2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offon.algorithms.attention_value import AttentionValue
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise
from offon.algorithms.text_method import TextMethod
from offon.benchmark.text_data import Texts, first_of
from offon.benchmark.text_judge import BLOCK, Asked, Judge

VALUE = "value"  # among what `value_of` gives, the values themselves
OF_HEAD = ("value_error", "value_variance")  # and of a head how it errs on a fifth, and their variance


@torch.no_grad()
def value_of(method: TextMethod, texts: Texts) -> dict[str, Tensor]:
    """The value of each logged response's prompt, VALUE [R, N]; of a head also OF_HEAD [R].

    The policy still is what the reference will be.
    """
    asked = first_of(texts.dev, method.config.value_prompts)
    judge = Judge(method.seeds, texts.coder, texts.scorers)
    said, _ = judge.generate(method.policy, asked, VALUE)
    earned = judge.rewards(asked, said).to(asked.mask.device)  # [R, M]
    if method.config.value == "head":
        return _fitted(method, texts, asked, earned)
    return {VALUE: earned.mean(-1, keepdim=True).expand(-1, len(texts.reward)).contiguous()}


def _fitted(method: TextMethod, texts: Texts, asked: Asked, earned: Tensor) -> dict[str, Tensor]:
    """Values by a head fitted to four in five of what [R, M] was earned.

    Its error on the others stands beside their variance around the mean of the first.
    """
    config, replicas, device, width = method.config, method.replicas, earned.device, method.policy.width
    head = AttentionValue(method.seeds, "value", width, heads=math.gcd(8, width)).to(device)
    optimizer, noise = Adam([head], config.value_lr).to(device), Noise(method.seeds, "text/head", device)
    mask = asked.mask.expand(replicas, -1, -1)
    hidden = method.policy.features(asked.numbers.expand_as(mask), mask)
    fitted = max(1, earned.shape[1] * 4 // 5)
    at = torch.arange(replicas, device=device)[:, None]
    for update in range(config.value_updates):
        if update % noise.chunk == 0:
            noise.begin_chunk(update)
        noise.begin_update(update % noise.chunk)
        rows = noise.integers("rows", fitted, config.reference_batch_size)
        with torch.enable_grad():
            found = head(hidden[at, rows], mask[at, rows], noise)
            optimizer.step((found - earned.gather(1, rows)).square().mean(-1))
    rest = earned[:, fitted:]
    error = (head(hidden[:, fitted:], mask[:, fitted:]) - rest).square().mean(-1)
    variance = (earned[:, :fitted].mean(-1, keepdim=True) - rest).square().mean(-1)
    values = []
    for prompt, inside in zip(texts.train[0].split(BLOCK), texts.train[1].split(BLOCK), strict=True):
        inside = inside.expand(replicas, -1, -1)
        values.append(head(method.policy.features(prompt.expand_as(inside), inside), inside))
    return {VALUE: torch.cat(values, 1), **dict(zip(OF_HEAD, (error, variance), strict=True))}
