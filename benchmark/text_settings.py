"""The settings of a text benchmark, and the named ones: t0 trains from nothing, t1 on a CPU, t2 on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from offon.algorithms.choices import check_choice
from offon.algorithms.text_method import VALUES

WORDS = "words"  # the model that needs no folder
REWARDS = ("vader", "ridge", "head")
TUNINGS = ("lora", "full")
PRECISIONS = ("float32", "bfloat16")
_MAY_BE_ZERO = ("reference_updates", "train_rows", "held_rows")


@dataclass(frozen=True)
class TextSettings:
    """What determines the numbers, beside the data; the defaults take about three minutes a seed on one core."""

    seeds: int = 5
    reference_updates: int = 400  # 0: the pre-trained model as it is
    updates: int = 250  # of each method; where advantages count, the share of positive ones of them
    batch_size: int = 64
    lr: float = 5e-4
    max_grad_norm: float = 1.0
    clip: float = 0.9
    kl_weight: float = 0.05
    prioritized: bool = True  # responses in proportion to what they weigh; else uniform ones
    filtered: bool = True  # responses of negative advantage are left out; else they are made less likely
    value: str = "constant"  # the mean of what the reference earns; or head: attention over the prompt, fitted to it
    value_prompts: int = 400
    value_updates: int = 200  # of the head
    value_lr: float = 1e-3
    test_prompts: int = 600
    prompt_words: int = 16  # tokens, where the model is a pre-trained one
    response_words: int = 24
    vocabulary: int = 2000
    width: int = 64
    layers: int = 2
    model: str = WORDS  # trained from nothing; or the folder of a Hugging Face causal language model
    tune: str = "lora"  # of a folder's model: low-rank adapters, or full: all weights
    rank: int = 16  # of adapters
    adapted: str = "q_proj,k_proj,v_proj,o_proj"  # layers that get adapters
    # of a folder's model: bfloat16 multiplies in it, faster, and a ratio then starts at 1 within a few per cent, since
    # rounding depends on the size of a batch; what is trained stays in float32
    precision: str = "float32"
    history: bool = False  # prompts are whole dialogues, the oldest turns left out first; else what was said last
    train_rows: int = 0  # logged responses to train on, evenly from all; 0: all
    held_rows: int = 0  # kept ones on which likelihood and drift are measured
    greedy: bool = False  # the likeliest token when judged, instead of a drawn one
    reward: str = "vader"  # who scores responses: ridge and head are fitted to the stored scores
    also: str = ""  # further scorers, a comma list, whose verdicts are told beside the reward
    stored: bool = False  # train on the stored scores themselves; who judges is still `reward`

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        for name, number in vars(self).items():
            least = 0 if name in _MAY_BE_ZERO else 1
            if isinstance(number, int) and not isinstance(number, bool) and number < least:
                raise ValueError(f"expected {name} of at least {least}, got {number}")
        for name, known in (("value", VALUES), ("reward", REWARDS), ("tune", TUNINGS), ("precision", PRECISIONS)):
            check_choice(name, getattr(self, name), known)
        if self.prioritized and not self.filtered:
            raise ValueError("expected prioritized=false with filtered=false: negative advantages have no priority")
        unknown = [name for name in self.scorers if name not in REWARDS]
        if unknown:
            raise ValueError(f"expected also as a comma list of {', '.join(REWARDS)}, got {self.also!r}")
        if "head" in self.scorers and not self.pretrained:
            raise ValueError("expected model=FOLDER with a pre-trained model for the scorer head, got model=words")
        if self.prompt_words < 2 or self.response_words < 2 or self.vocabulary < 8:
            raise ValueError("expected at least 2 words of prompt and response and a vocabulary of 8")
        if self.model == WORDS and not self.reference_updates:
            raise ValueError("expected model=FOLDER, or reference_updates of at least 1: words start from nothing")

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names; the first is the reward."""
        return tuple(dict.fromkeys([self.reward, *filter(None, self.also.split(","))]))

    @property
    def pretrained(self) -> bool:
        """Whether the model comes from a folder; its seeds then train one after the other."""
        return self.model != WORDS


PRESETS: dict[str, dict[str, Any]] = {
    "t0": {},  # a model over words, on a CPU
    "t1": {  # a pre-trained model with adapters, on a CPU
        "seeds": 1,
        "reference_updates": 0,
        "updates": 120,  # about half of them where advantages count
        "batch_size": 8,
        "value_prompts": 64,
        "test_prompts": 208,
        "prompt_words": 64,
        "response_words": 32,
        "train_rows": 512,
        "held_rows": 64,
        "precision": "bfloat16",
    },
    "t2": {  # a pre-trained model, all of it, on a GPU
        "seeds": 1,
        "reference_updates": 280,  # two times through the data
        "updates": 140,
        "batch_size": 64,
        "lr": 2e-5,
        "value_prompts": 500,
        "test_prompts": 600,
        "prompt_words": 256,
        "response_words": 96,
        "tune": "full",
        "precision": "bfloat16",
        "history": True,
        "reward": "ridge",
        "also": "head,vader",
        "stored": True,
    },
}
