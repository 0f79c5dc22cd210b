"""What a method of protocol `text` is: a language model that goes on from a reference on logged responses with rewards.

First the policy learns the logged responses by likelihood, in the same way under every method: that is the reference.
Then it stays as it is, frozen, and the policy goes on from it by the method's own rule. Without updates by likelihood a
pre-trained model is the reference itself. R replicas train together; every tensor has a leading replica axis R. A
program with a pre-trained model has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from offon.algorithms.choices import check_choice
from offon.algorithms.interface import Language, Method, Spec
from offon.algorithms.language_model import LanguageModel
from offon.algorithms.noise import Noise
from offon.algorithms.pretrained import Tuning, policy_and_reference
from offon.algorithms.sequence_losses import Objective, Scored, sequence_loss
from offon.algorithms.word_model import Shape, WordModel

if TYPE_CHECKING:
    from typing import Self

REFERENCE, TEXT = "reference", "text"  # the phases
VALUES = ("constant", "head")
TUNINGS, PRECISIONS = ("lora", "full"), ("float32", "bfloat16")
_LIKELIHOOD = Objective("nll")


@dataclass(frozen=True)
class Responses:
    """Logged responses of one update, B per replica, and what is known of each."""

    prompt: Tensor  # [R, B, P] int64, padded on the left
    prompt_mask: Tensor  # [R, B, P], 1 inside
    response: Tensor  # [R, B, T] int64, padded on the right
    mask: Tensor  # [R, B, T], 1 inside
    reference: Tensor  # [R, B, T], log-probabilities of the reference; 0 while it is being learned
    reward: Tensor  # [R, B], of the response
    value: Tensor  # [R, B], what the reference earns after the prompt; 0 while it is being learned


class TextMethod(Method):
    """A method of protocol text."""

    capturable = False

    @dataclass(frozen=True)
    class Config(Method.Config):
        """Settings of reference, value and model; those of the reference must agree for methods to share it."""

        RANGES: ClassVar[Mapping[str, str]] = {
            "batch_size": "[1, inf)",
            "lr": "(0, inf)",
            "max_grad_norm": "(0, inf)",
            "reference_updates": "[0, inf)",
            "reference_batch_size": "[1, inf)",
            "reference_lr": "(0, inf)",
            "value_prompts": "[1, inf)",
            "value_updates": "[1, inf)",
            "value_lr": "(0, inf)",
            "width": "[4, inf)",
            "layers": "[1, inf)",
            "rank": "[1, inf)",
        }
        LATER: ClassVar[tuple[str, ...]] = ("tune", "rank", "adapted", "precision")

        batch_size: int = 64  # responses per replica and update
        lr: float = 5e-4  # Adam's learning rate
        max_grad_norm: float = 1.0  # per replica, of the reference's training too
        reference_updates: int = 400  # of the reference, by likelihood, before those of the method; 0: the data's model
        reference_batch_size: int = 64  # responses per replica and update of the reference and of the value's head
        reference_lr: float = 5e-4  # Adam's learning rate for the reference
        value: str = "constant"  # the mean of what the reference earns; or head: attention over the prompt, fitted
        value_prompts: int = 400  # prompts to which the reference responds for its value; they are kept for that
        value_updates: int = 200  # of the head
        value_lr: float = 1e-3  # of the head
        width: int = 64  # of a model over words
        layers: int = 2  # of a model over words
        tune: str = "lora"  # of a pre-trained model: low-rank adapters; or full: all weights
        rank: int = 16  # of adapters
        adapted: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  # layers that get adapters
        precision: str = "float32"  # of a pre-trained model's products; bfloat16: faster, ratios begin at 1 nearly

        @classmethod
        def tiny(cls) -> Self:
            """A setting for the contract suite."""
            small: dict[str, Any] = {"batch_size": 16, "reference_batch_size": 16, "lr": 3e-3, "reference_lr": 3e-3}
            return cls(**small, reference_updates=5, value_prompts=8, value_updates=5, width=16, layers=1)

    config: Config
    policy: LanguageModel
    reference: LanguageModel

    def __init__(self, spec: Spec, config: Config, seeds: Sequence[int]) -> None:
        super().__init__(spec, config, seeds)
        if spec.language is None:
            raise ValueError(f"{type(self).name} learns from texts, and this task has none")
        for name, known in (("value", VALUES), ("tune", TUNINGS), ("precision", PRECISIONS)):
            check_choice(f"algorithm.{name}", getattr(config, name), known)
        self.policy, self.reference = self._models(spec.language)
        self.reference.freeze()
        self.optimizer = self.policy.optimizer(config.reference_lr, config.max_grad_norm)

    def _models(self, known: Language) -> tuple[LanguageModel, LanguageModel]:
        """The policy and what will be the reference."""
        config = self.config
        if known.net is not None:
            rank = config.rank if config.tune == "lora" else 0
            tuning = Tuning(rank, config.adapted, config.precision == "bfloat16")
            learns = config.reference_updates > 0
            return policy_and_reference(known.net, known.response, tuning, self.seeds, learns)
        if not config.reference_updates:
            raise ValueError(
                "expected algorithm.reference_updates of at least 1, got 0: models over words begin with nothing; "
                "data.model=FOLDER takes a pre-trained one"
            )
        shape = Shape(known.tokens, known.prompt, known.response, config.width, config.layers)
        policy = WordModel(self.seeds, "words", shape)
        return policy, policy.branch("reference")

    @property
    def stream(self) -> str:
        """What its noise is named after: methods of one name draw the same numbers."""
        return type(self).name

    def begin(self, phase: str) -> None:
        """Before the method's own phase, the reference becomes what the policy is; the optimiser starts anew."""
        self.optimizer.reset()
        self.optimizer.lr = self.config.reference_lr if phase == REFERENCE else self.config.lr
        if phase == TEXT and self.config.reference_updates:
            self.reference.load(self.policy.state())

    def imitate(self, batch: Responses, noise: Noise) -> dict[str, Tensor]:
        """One update of the reference to be, by likelihood; metrics [R]."""
        loss, _ = sequence_loss(self.scored(batch), _LIKELIHOOD)
        self.optimizer.step(loss)
        return {"loss": loss.detach()}

    def scored(self, batch: Responses) -> Scored:
        """The responses as policy and reference see them, with a gradient."""
        own = self.policy.log_prob(batch.prompt, batch.prompt_mask, batch.response, batch.mask)
        return Scored(own, batch.reference, batch.mask, batch.reward, batch.value)

    # ---- what a method adds

    def row_weights(self, reward: Tensor, value: Tensor) -> Tensor:
        """How often each logged response is drawn, in any unit: rewards [N], values [R, N] -> [R, N]; never below 0."""
        return torch.ones_like(value)

    def updates_of(self, updates: int, reward: Tensor, value: Tensor) -> Tensor:
        """How many of the updates each replica makes before it stands still, [R] int64."""
        return torch.full((len(value),), updates, device=value.device)

    def update(self, batch: Responses, noise: Noise) -> dict[str, Tensor]:
        """One update of the policy, in place. Returns metrics, tensors [R], with the same keys at every call."""
        raise NotImplementedError
