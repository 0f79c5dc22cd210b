"""What a record of a text method says: the reward of each response to a test prompt, and what it went along with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offon.algorithms.sequence_losses import effective_size
from offon.algorithms.text_method import TextMethod
from offon.benchmark.evaluator import Evaluation
from offon.benchmark.text_data import Texts, first_of
from offon.benchmark.text_judge import Asked, log_probs
from offon.benchmark.text_stepper import Course

_DIGITS = 7  # of rewards, which come in single precision


@dataclass(frozen=True)
class Verdict:
    """On the last checkpoint of R replicas."""

    final: Evaluation  # rewards and numbers of words of the responses to test prompts, [R, E]
    metrics: dict[str, list[float]]  # [R] each
    said: list[list[str]]  # the responses, [R][E]


@torch.no_grad()
def rewards_on(method: TextMethod, texts: Texts, asked: Asked) -> Evaluation:
    """Rewards and lengths in words of the policy's responses to prompts on the way, [R, N]."""
    judge = texts.judge(method.seeds)
    said, _ = judge.generate(method.policy, asked, "dev")
    return _evaluation(judge.rewards(asked, said), said)


@torch.no_grad()
def verdict_on(method: TextMethod, texts: Texts, episodes: int) -> Verdict:
    """By responses to the first `episodes` test prompts, and by logged responses to prompts kept apart."""
    judge = texts.judge(method.seeds)
    before = log_probs(method.reference, texts.held, method.replicas)
    test = first_of(texts.test, episodes)
    metrics, rewards, said = judge.judge(method.policy, method.reference, test, texts.held, before)
    return Verdict(_evaluation(rewards, said), {n: v for n, v in metrics.items() if n != "reward"}, said)


def _evaluation(rewards: Tensor, said: list[list[str]]) -> Evaluation:
    lengths = [[len(text.split()) for text in each] for each in said]
    return Evaluation(rewards.double().numpy().round(_DIGITS), np.array(lengths, dtype=np.int64), None)


def summary_of(course: Course, reward: Tensor, verdict: Verdict, index: int) -> dict[str, Any]:
    """What a record says of a replica beside its rewards; what is not finite is left out.

    `training` holds the means of the method's metrics over the replica's own updates; `positive_share` is that of the
    logged responses whose reward lies above their value, `effective_responses` how many count when they are drawn.
    """
    value = course.value[index]
    found = {
        **{name: values[index] for name, values in verdict.metrics.items()},
        "value": float(value.mean()),
        "positive_share": float((reward > value).double().mean()),
        "effective_responses": float(effective_size(course.probability[index].double())),
        **{name: float(values[index]) for name, values in course.facts.items()},
    }
    training = {name: float(values[index]) for name, values in course.sums.items()} if course.made[index] else {}
    return {**_finite(found), "updates": int(course.made[index]), "training": _finite(training)}


def _finite(numbers: dict[str, float]) -> dict[str, float]:
    return {name: number for name, number in numbers.items() if math.isfinite(number)}
