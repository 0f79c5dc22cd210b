"""A small text benchmark: language models over words, trained on logged responses by A-LoL and its neighbours.

R seeds are R models in one program. First a reference learns the responses by likelihood; what its own responses earn,
on prompts kept for that, is its value. Each method goes on from the reference, and its responses to test prompts that
no stage has seen are scored. No text is printed or kept: the data can be offensive, and so can what is learned of them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offon.algorithms.attention_value import AttentionValue
from offon.algorithms.nn import Adam
from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import (
    BY_ADVANTAGE,
    BY_REWARD,
    VARIANTS,
    Objective,
    Scored,
    pick,
    priority,
    sampled_kl,
    sequence_loss,
)
from offon.algorithms.word_model import Sampled, Shape, WordModel
from offon.benchmark.text_reward import Scorer
from offon.benchmark.words import END, Vocabulary, distinct
from offon.datasets.dialogues import Dialogues
from offon.datasets.errors import DataError

METHODS = VARIANTS
VALUES = ("constant", "head")
_BLOCK = 256  # rows of a forward pass outside training
Metrics = dict[str, list[float]]  # one number per seed


@dataclass(frozen=True)
class TextSettings:
    """What determines the numbers, beside the data; the defaults take about three minutes a seed on one core."""

    seeds: int = 5
    reference_updates: int = 400
    updates: int = 250  # of each method; where advantages count, the share of positive ones of them
    batch_size: int = 64
    lr: float = 5e-4
    max_grad_norm: float = 1.0
    clip: float = 0.9
    kl_weight: float = 0.05
    prioritized: bool = True  # responses in proportion to what they weigh; else uniform ones
    value: str = "constant"  # the mean of what the reference earns; or head: attention over the prompt, fitted to it
    value_prompts: int = 400
    value_updates: int = 200  # of the head
    value_lr: float = 1e-3
    test_prompts: int = 600
    prompt_words: int = 16
    response_words: int = 24
    vocabulary: int = 2000
    width: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        """Refuses what cannot be run."""
        for name, number in vars(self).items():
            if isinstance(number, int) and not isinstance(number, bool) and number < 1:
                raise ValueError(f"expected {name} of at least 1, got {number}")
        if self.value not in VALUES:
            raise ValueError(f"expected value among {', '.join(VALUES)}, got {self.value!r}")
        if self.prompt_words < 2 or self.response_words < 2 or self.vocabulary < 8:
            raise ValueError("expected at least 2 words of prompt and response and a vocabulary of 8")


class TextBench:
    """Data and reference of one setting; `measure` trains and judges a method."""

    def __init__(self, settings: TextSettings, dialogues: Dialogues, scorer: Scorer) -> None:
        self.settings, self.scorer = settings, scorer
        self.seeds = tuple(range(settings.seeds))
        logged = dialogues.of("train")
        prompts = {part: dialogues.prompts(part) for part in ("dev", "test")}
        if not (logged and all(prompts.values())):
            raise DataError(
                "expected prompts in all of train, dev and test; the data are too few for a split by prompt"
            )
        self.vocabulary = Vocabulary.of(
            (text for each in logged for text in (each.prompt, each.text)), settings.vocabulary
        )
        self.train = self._encoded([each.prompt for each in logged], [each.text for each in logged])
        held = dialogues.of("dev")
        self.held = self._encoded([each.prompt for each in held], [each.text for each in held])
        self.dev = self.vocabulary.prompts(prompts["dev"][: settings.value_prompts], settings.prompt_words)
        self.test = self.vocabulary.prompts(prompts["test"][: settings.test_prompts], settings.prompt_words)
        self.reward = torch.tensor(scorer([self.vocabulary.text(row) for row in self.train[2].tolist()]))
        self.sizes = {"train": len(logged), "dev": len(self.dev[0]), "test": len(self.test[0])}
        shape = Shape(
            len(self.vocabulary), settings.prompt_words, settings.response_words, settings.width, settings.layers
        )
        self.reference = WordModel(self.seeds, "words", shape)
        self.value = torch.zeros(settings.seeds, len(self.reward))  # of each logged response's prompt
        self.value_facts: Metrics = {}
        self.train_log_prob = torch.zeros(0)
        self.held_log_prob = torch.zeros(0)

    def _encoded(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, ...]:
        settings = self.settings
        asked = self.vocabulary.prompts(prompts, settings.prompt_words)
        return (*asked, *self.vocabulary.responses(texts, settings.response_words))

    # ---- training

    def prepare(self) -> None:
        """Trains the reference, measures its value, and notes its log-probabilities; once."""
        if self.train_log_prob.numel():
            return
        ones = torch.ones(self.settings.seeds, len(self.reward))
        self._train(self.reference, "reference", Objective("nll"), self.settings.reference_updates, ones)
        self.reference.requires_grad_(False)
        texts = self._generate(self.reference, self.dev, "value")[0]
        earned = torch.tensor([self.scorer(each) for each in texts])  # [R, N]
        if self.settings.value == "head":
            self.value = self._fit_head(earned)
        else:
            self.value = earned.mean(-1, keepdim=True).expand_as(self.value)
        self.value_facts["value"] = self.value.mean(-1).tolist()
        self.train_log_prob = self._log_probs(self.reference, self.train)
        self.held_log_prob = self._log_probs(self.reference, self.held)

    def measure(self, method: str) -> Metrics:
        """Trains a method from the reference and judges it; "reference" is judged as it is."""
        if method == "reference":
            return self._judge(self.reference) | self.value_facts
        settings = self.settings
        objective = Objective(method, settings.clip, settings.kl_weight)
        model = copy.deepcopy(self.reference).requires_grad_(True)
        advantage = self.reward - self.value  # [R, N]
        if method in BY_ADVANTAGE:
            weight = advantage
        else:
            weight = (self.reward if method in BY_REWARD else torch.ones_like(self.reward)).expand_as(advantage)
        seen = self._train(model, method, objective, settings.updates, weight)
        return self._judge(model) | seen

    def _train(self, model: WordModel, name: str, objective: Objective, updates: int, weight: Tensor) -> Metrics:
        """Some updates; where advantages count, each seed makes the share of positive ones of them and then stands."""
        settings = self.settings
        optimizer = Adam([model], settings.lr, max_grad_norm=settings.max_grad_norm)
        noise = Noise(self.seeds, f"text/{name}")
        made = torch.full((settings.seeds,), updates)
        if objective.variant in BY_ADVANTAGE:
            made = ((weight > 0).float().mean(-1) * updates).long().clamp(min=1)
        uniform = not settings.prioritized or objective.variant == "nll"
        probability = priority(torch.ones_like(weight) if uniform else weight)
        totals = {key: torch.zeros(settings.seeds) for key in ("weight", "at_lower", "at_upper")}
        for update in range(int(made.max())):
            if update % noise.chunk == 0:
                noise.begin_chunk(update)
            noise.begin_update(update % noise.chunk)
            rows = pick(probability, noise.uniform("rows", settings.batch_size))  # [R, B]
            loss, info = sequence_loss(self._scored(model, rows), objective)
            moves = update < made
            _step(model, optimizer, loss, moves)
            for key, total in totals.items():
                total += info[key] * moves / made
        kept = (self.reward > self.value).float().mean(-1)
        return {key: value.tolist() for key, value in {**totals, "kept_share": kept, "updates": made.float()}.items()}

    def _fit_head(self, earned: Tensor) -> Tensor:
        """Values [R, N] of logged prompts, by a head fitted to four in five of what [R, N] the reference earned.

        How it errs on the fifth, beside their variance around the mean of the others, is noted.
        """
        settings = self.settings
        width = settings.width
        head = AttentionValue(self.seeds, "value", width, heads=math.gcd(8, width))
        optimizer, noise = Adam([head], settings.value_lr), Noise(self.seeds, "text/head")
        mask = self.dev[1].expand(settings.seeds, -1, -1)
        with torch.no_grad():
            hidden = self.reference.features(self.dev[0].expand_as(mask), mask)
        fitted = max(1, earned.shape[1] * 4 // 5)
        for update in range(settings.value_updates):
            if update % noise.chunk == 0:
                noise.begin_chunk(update)
            noise.begin_update(update % noise.chunk)
            rows, at = noise.integers("rows", fitted, settings.batch_size), torch.arange(settings.seeds)[:, None]
            optimizer.step((head(hidden[at, rows], mask[at, rows], noise) - earned.gather(1, rows)).square().mean(-1))
        with torch.no_grad():
            rest = earned[:, fitted:]
            error = (head(hidden[:, fitted:], mask[:, fitted:]) - rest).square().mean(-1)
            variance = (earned[:, :fitted].mean(-1, keepdim=True) - rest).square().mean(-1)
            self.value_facts |= {"value_error": error.tolist(), "value_variance": variance.tolist()}
            found = []
            for prompt, inside in zip(self.train[0].split(_BLOCK), self.train[1].split(_BLOCK), strict=True):
                inside = inside.expand(settings.seeds, -1, -1)
                found.append(head(self.reference.features(prompt.expand_as(inside), inside), inside))
        return torch.cat(found, 1)

    def _scored(self, model: WordModel, rows: Tensor) -> Scored:
        prompt, prompt_mask, response, mask = (column[rows] for column in self.train)
        own = model.log_prob(prompt, prompt_mask, response, mask)
        if self.train_log_prob.numel():
            reference = self.train_log_prob.gather(1, rows[..., None].expand_as(own))
        else:
            reference = own.detach()
        return Scored(own, reference, mask, self.reward[rows], self.value.gather(1, rows))

    # ---- judging

    @torch.no_grad()
    def _log_probs(self, model: WordModel, columns: tuple[Tensor, ...]) -> Tensor:
        """Of all logged responses, [R, N, T]."""
        replicas = self.settings.seeds
        found = []
        for block in zip(*(column.split(_BLOCK) for column in columns), strict=True):
            found.append(model.log_prob(*(part.expand(replicas, *part.shape) for part in block)))
        return torch.cat(found, 1)

    def _generate(
        self, model: WordModel, prompts: tuple[Tensor, Tensor], name: str
    ) -> tuple[list[list[str]], Sampled, Scored]:
        """One response to each prompt: texts [R][N], how they were drawn, and what the reference thinks of them."""
        noise = Noise(self.seeds, f"text/sample/{name}", chunk=1)
        noise.begin_chunk(0)
        prompt, prompt_mask = (part.expand(self.settings.seeds, *part.shape) for part in prompts)
        drawn = model.sample(prompt, prompt_mask, END, noise)
        texts = [[self.vocabulary.text(row) for row in rows] for rows in drawn.numbers.tolist()]
        reference = self.reference.log_prob(prompt, prompt_mask, drawn.numbers, drawn.mask)
        nothing = torch.zeros(drawn.mask.shape[:-1])
        return texts, drawn, Scored(drawn.log_prob, reference, drawn.mask, nothing, nothing)

    @torch.no_grad()
    def _judge(self, model: WordModel) -> Metrics:
        """Reward, diversity, length and drift, a number for each seed."""
        texts, drawn, own_samples = self._generate(model, self.test, "test")
        k1, k3 = sampled_kl(own_samples)
        words = [[text.split() for text in each] for each in texts]
        own = self._log_probs(model, self.held)
        inside = self.held[3]
        found: Metrics = {
            "reward": torch.tensor([self.scorer(each) for each in texts]).mean(-1).tolist(),
            "length": [sum(map(len, each)) / len(each) for each in words],
            "entropy": ((drawn.entropy * drawn.mask).sum((-2, -1)) / drawn.mask.sum((-2, -1))).tolist(),
            "kl_k1": k1.tolist(),
            "kl_k3": k3.tolist(),
            "log_ratio": ((own - self.held_log_prob) * inside).sum(-1).mean(-1).tolist(),
            "nll": (-(own * inside).sum((-2, -1)) / inside.sum()).tolist(),
        }
        for n in (1, 2, 3):
            found[f"distinct_{n}"] = [distinct(each, n) for each in words]
            found[f"distinct_{n}_of_words"] = [distinct(each, n, by_words=True) for each in words]
        return found


def _step(model: WordModel, optimizer: Adam, loss: Tensor, moves: Tensor) -> None:
    """One step, after which the seeds that do not move [R] stand where they stood."""
    with torch.no_grad():
        before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step(loss)
    with torch.no_grad():
        for old, new in zip(before, model.parameters(), strict=True):
            torch.where(moves.view(-1, *[1] * (old.dim() - 1)), new, old, out=new)


def run(
    bench: TextBench, methods: Sequence[str], done: dict[str, Metrics], tell: Callable[[str, Metrics, float], None]
) -> None:
    """Measures what is not done yet; `tell` hears of each as it ends."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"expected methods among {', '.join(METHODS)}, got {', '.join(unknown)}")
    missing = [name for name in ("reference", *methods) if name not in done]
    if not missing:
        return
    bench.prepare()
    for name in missing:
        start = time.perf_counter()
        tell(name, bench.measure(name), time.perf_counter() - start)
