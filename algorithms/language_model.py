"""What training and judging ask of a language model, whether R small ones in one program or a pre-trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise


@dataclass(frozen=True)
class Sampled:
    """Responses that a model has drawn, up to and with the end; [R, N, T] each."""

    numbers: Tensor
    mask: Tensor
    log_prob: Tensor
    entropy: Tensor  # of the distribution each word was drawn from


class LanguageModel(Protocol):
    """R models; prompts [R, B, P] are padded on the left, responses [R, B, T] on the right, masks are 1 inside."""

    width: int  # of features

    def log_prob(self, prompt: Tensor, prompt_mask: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [R, B, T] of responses; what stands where the mask is 0 has no meaning."""

    def features(self, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        """What the last layer makes of prompts, [R, B, P, d]."""

    def sample(self, prompt: Tensor, prompt_mask: Tensor, end: int, noise: Noise, greedy: bool = False) -> Sampled:
        """A response to each prompt, drawn token by token until `end`."""

    def branch(self, name: str) -> LanguageModel:
        """A copy that can be trained, while this one stays as it is; an earlier copy of that name may be lost."""

    def freeze(self) -> None:
        """Nothing of it will be trained any more."""

    def optimizer(self, lr: float, max_grad_norm: float) -> Adam:
        """Over what is trained."""

    def state(self) -> dict[str, Tensor]:
        """What training changes, [R, ...] each: the very tensors."""

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state` gave."""
