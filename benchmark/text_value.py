"""What a text method's reference earns after each logged prompt: one number for all, or a head that sees the prompt.

It responds to prompts that are kept for that; what its responses earn is the value, as in Baheti et al. (2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.attention_value import AttentionValue
from offon.algorithms.language_model import LanguageModel
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise
from offon.algorithms.text_method import TextMethod
from offon.benchmark.text_data import Texts, first_of
from offon.benchmark.text_judge import BLOCK, Asked
from offon.datasets.errors import DataError

VALUE = "value"  # among what `value_of` gives, the values themselves
OF_HEAD = ("value_error", "value_variance")  # and of a head how it errs on a fifth, and their variance


@torch.no_grad()
def value_of(method: TextMethod, texts: Texts) -> dict[str, Tensor]:
    """The value of each logged response's prompt, VALUE [R, N]; of a head also OF_HEAD [R].

    The policy still is what the reference will be.
    """
    asked, earned = _earned(method, texts)
    if method.config.value == "head":
        config = method.config
        fit = HeadFit(config.value_updates, config.reference_batch_size, config.value_lr)
        values, *errors = fit_head(method.policy, method.seeds, asked, earned, texts.train, fit)
        return {VALUE: values, **dict(zip(OF_HEAD, errors, strict=True))}
    return {VALUE: earned.mean(-1, keepdim=True).expand(-1, len(texts.reward)).contiguous()}


def _earned(method: TextMethod, texts: Texts) -> tuple[Asked, Tensor]:
    """Prompts and what the reference's responses to them earn, [R, M].

    Stored scores are of logged responses alone, which then stand in for the reference's: it learned from such.
    """
    if texts.options.stored:
        return texts.held_asked, texts.held_stored.expand(method.replicas, -1)
    asked, judge = first_of(texts.dev, method.config.value_prompts), texts.judge(method.seeds)
    said, _ = judge.generate(method.policy, asked, VALUE)
    return asked, judge.rewards(asked, said).to(asked.mask.device)


def check_prompts(value: str, count: int) -> None:
    """Refuses a head that has too few prompts to be fitted to some and tried on others.

    Raises:
        DataError: for a head, and fewer than two prompts.
    """
    if value == "head" and count < 2:
        raise DataError(
            f"expected two prompts or more for value=head, to fit it to and to see how it errs, got {count}; "
            "raise value_prompts, give more data, or take value=constant"
        )


@dataclass(frozen=True)
class HeadFit:
    """How a head is fitted to what responses earned."""

    updates: int
    batch_size: int
    lr: float


@torch.no_grad()
def fit_head(
    model: LanguageModel, seeds: Sequence[int], asked: Asked, earned: Tensor, logged: Sequence[Tensor], fit: HeadFit
) -> tuple[Tensor, Tensor, Tensor]:
    """Values [R, N] of logged prompts by a head fitted to four in five of what was earned; how it errs on the others.

    Args:
        model: whose features the head sees.
        seeds: of the replicas.
        asked: M prompts.
        earned: by the responses to them, [R, M].
        logged: the logged prompts [N, P] and their mask.
        fit: the training of the head.

    Returns:
        The values, the error of the head on the rest [R], and their variance around the mean of the first [R].
    """
    replicas, device, width = len(seeds), earned.device, model.width
    head = AttentionValue(seeds, "value", width, heads=math.gcd(8, width)).to(device)
    optimizer, noise = Adam([head], fit.lr).to(device), Noise(seeds, "text/head", device)
    mask = asked.mask.expand(replicas, -1, -1)
    hidden = model.features(asked.numbers.expand_as(mask), mask)
    fitted = max(1, earned.shape[1] * 4 // 5)
    at = torch.arange(replicas, device=device)[:, None]
    for update in range(fit.updates):
        if update % noise.chunk == 0:
            noise.begin_chunk(update)
        noise.begin_update(update % noise.chunk)
        rows = noise.integers("rows", fitted, fit.batch_size)
        with torch.enable_grad():
            found = head(hidden[at, rows], mask[at, rows], noise)
            optimizer.step((found - earned.gather(1, rows)).square().mean(-1))
    rest = earned[:, fitted:]
    error = (head(hidden[:, fitted:], mask[:, fitted:]) - rest).square().mean(-1)
    variance = (earned[:, :fitted].mean(-1, keepdim=True) - rest).square().mean(-1)
    values = []
    for prompt, inside in zip(logged[0].split(BLOCK), logged[1].split(BLOCK), strict=True):
        inside = inside.expand(replicas, -1, -1)
        values.append(head(model.features(prompt.expand_as(inside), inside), inside))
    return torch.cat(values, 1), error, variance
