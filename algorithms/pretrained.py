"""A pre-trained causal language model with the face of `LanguageModel` for one replica: adapters, or all weights.

Low-rank adapters (Hu et al., 2021) share one frozen model: branches differ in their adapters alone. Hidden states may
be computed in bfloat16; what is trained, the last layer's product and all log-probabilities are float32, because a
ratio of whole responses is a sum over many tokens. Padding on the left shifts no position.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from offon.algorithms.language_model import Sampled
from offon.algorithms.nn import Adam, generator_of
from offon.algorithms.noise import Noise
from offon.algorithms.sequence_losses import pick

_TOKENS = 256  # whose logits exist together: [256, vocabulary]


@dataclass(frozen=True)
class Tuning:
    """What of a model is trained, and how it computes."""

    rank: int = 16  # of adapters; 0: all weights are trained
    layers: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")  # that get adapters
    bfloat16: bool = False
    rows: int = 32  # of a forward pass without gradient
    rows_on_gpu: int = 256


def token_log_probs(hidden: Tensor, weight: Tensor, numbers: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-probabilities [n] of tokens [n] under logits hidden [n, d] times weight [V, d]; float32.

    Logits are made for 256 tokens at a time, and again for the gradient, so that no [n, V] ever exists.
    """
    found = []
    for part, wanted in zip(hidden.split(_TOKENS), numbers.split(_TOKENS), strict=True):
        if torch.is_grad_enabled():
            found.append(checkpoint(_chunk, part, weight, wanted, bias, use_reentrant=False))
        else:
            found.append(_chunk(part, weight, wanted, bias))
    return torch.cat(found)


def _chunk(hidden: Tensor, weight: Tensor, numbers: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = torch.nn.functional.linear(hidden.float(), weight, bias)
        return -torch.nn.functional.cross_entropy(logits, numbers, reduction="none")


class Pretrained(torch.nn.Module):
    """One model; prompts are [1, B, P], responses [1, B, T].

    What is trained is its state, with a leading axis for the one replica; nothing else of the net is in any state.

    Args:
        net: a transformers causal language model.
        response: longest response.
        tuning: what of it is trained.
        seed: of new adapters.
        adapter: the adapters' name; None: the model as it is.
        is_branch: whether it is there to be trained.
    """

    def __init__(
        self, net: Any, response: int, tuning: Tuning, seed: int, adapter: str | None = None, is_branch: bool = False
    ) -> None:
        super().__init__()
        self._held = (net,)  # in a tuple, so that it is no submodule
        self.response, self.tuning, self.seed, self.adapter, self.is_branch = response, tuning, seed, adapter, is_branch
        self.width, self._frozen = int(net.config.hidden_size), False
        head = net.get_output_embeddings()
        if head.weight.dtype != torch.float32:  # nothing of it is trained: one float32 copy serves all
            self.register_buffer("_float_head", head.weight.detach().float(), persistent=False)
        body = getattr(net, net.base_model_prefix)
        self._cache = "cache" if "cache" in inspect.signature(body.forward).parameters else "past_key_values"
        self._view()
        if not is_branch:
            self._check_head()

    @property
    def net(self) -> Any:
        """The model, which branches with adapters share."""
        return self._held[0]

    # ---- the face of a language model

    def log_prob(self, prompt: Tensor, prompt_mask: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        """Log-probabilities [1, B, T] of responses."""
        columns = (prompt[0], prompt_mask[0], response[0], mask[0])
        with self._active():
            if torch.is_grad_enabled():
                return self._log_prob(*columns)[None]
            parts = zip(*(column.split(self._rows(prompt)) for column in columns), strict=True)
            return torch.cat([self._log_prob(*part) for part in parts])[None]

    @torch.no_grad()
    def features(self, prompt: Tensor, prompt_mask: Tensor) -> Tensor:
        """What the last layer makes of prompts, [1, B, P, d], float32; 0 where the mask is 0."""
        rows = self._rows(prompt)
        with self._active():
            parts = zip(prompt[0].split(rows), prompt_mask[0].split(rows), strict=True)
            found = torch.cat([self._hidden(numbers, inside).float() for numbers, inside in parts])
        return torch.where(prompt_mask[0, ..., None] > 0, found, torch.zeros(()).to(found))[None]

    @torch.no_grad()
    def sample(self, prompt: Tensor, prompt_mask: Tensor, end: int, noise: Noise, greedy: bool = False) -> Sampled:
        """A response to each prompt, drawn token by token until `end`; or the likeliest tokens."""
        count, rows = prompt.shape[1], self._rows(prompt)
        uniform = torch.stack([noise.uniform(f"word{step}", count, 1)[0] for step in range(self.response)])
        found = []
        with self._active():
            for start in range(0, count, rows):
                block = slice(start, start + rows)
                aim = None if greedy else uniform[:, block]
                found.append(self._sample(prompt[0, block], prompt_mask[0, block], end, aim))
        return Sampled(*(torch.cat(part)[None] for part in zip(*found, strict=True)))

    def branch(self, name: str) -> Pretrained:
        """A copy that can be trained; adapters of that name are begun anew, whoever used them."""
        if not self.tuning.rank:
            whole = copy.deepcopy(self.net).requires_grad_(True)
            return Pretrained(whole, self.response, self.tuning, self.seed, is_branch=True)
        if not any(name in layer.lora_A for layer in _adapted(self.net)):
            _add_adapters(self.net, name, self.tuning)
        twin = Pretrained(self.net, self.response, self.tuning, self.seed, name, is_branch=True)
        _begin(twin.state(), self.seed)
        if self.adapter is not None:
            twin.load(self.state())
        return twin

    def freeze(self) -> None:
        """Nothing of it will be trained any more."""
        self._frozen = True

    def optimizer(self, lr: float, max_grad_norm: float) -> Adam:
        """Over the adapters, or over all weights."""
        trained = self._trained()
        stacked = torch.nn.ParameterList(trained.values())
        return Adam([stacked], lr, max_grad_norm=max_grad_norm, stacked=False).to(next(iter(trained.values())).device)

    def state(self) -> dict[str, Tensor]:
        """The adapters, or all weights, [1, ...] each: the very tensors; empty for what is no branch."""
        return {name: self.get_buffer(_key(name)) for name in self._trained()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over adapters or weights, whatever the adapters there are called."""
        for name, own in self.state().items():
            own.copy_(state[name])

    # ---- inside

    def _trained(self) -> dict[str, torch.nn.Parameter]:
        """By names without the adapters' own."""
        if not self.is_branch:
            return {}
        every = dict(self.net.named_parameters())
        if not self.tuning.rank:
            return every
        mark = f".{self.adapter}."
        return {name.replace(mark, "."): each for name, each in every.items() if mark in name}

    def _view(self) -> None:
        """Makes the state views of the net's own weights."""
        for name, parameter in self._trained().items():
            self.register_buffer(_key(name), parameter.detach()[None])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Pretrained:
        """Takes the net along to another device."""
        super()._apply(fn, recurse)
        self.net._apply(fn)
        self._view()
        return self

    @property
    def _weight(self) -> Tensor:
        """Of the last layer, float32."""
        weight: Tensor = self.net.get_output_embeddings().weight
        return weight if weight.dtype == torch.float32 else self.get_buffer("_float_head")

    @property
    def _bias(self) -> Tensor | None:
        bias = self.net.get_output_embeddings().bias
        return None if bias is None else bias.float()

    def _rows(self, where: Tensor) -> int:
        """Of a forward pass without gradient: a GPU waits for its host if they are few."""
        return self.tuning.rows_on_gpu if where.is_cuda else self.tuning.rows

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Its own adapters are at work, and the gradient where it is trained."""
        for layer in _adapted(self.net):
            layer.enable_adapters(self.adapter is not None)
            if self.adapter is not None:
                layer.set_adapter(self.adapter)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._frozen):
            yield

    def _log_prob(self, prompt: Tensor, prompt_mask: Tensor, response: Tensor, mask: Tensor) -> Tensor:
        """[B, T], as above; columns of the prompt that are padding in all rows are left out."""
        first = int((prompt_mask > 0).any(0).long().argmax())
        numbers, inside = torch.cat((prompt, response), -1), torch.cat((prompt_mask, mask), -1)
        hidden = self._hidden(numbers[:, first:], inside[:, first:])[:, prompt.shape[-1] - first - 1 : -1]
        found = token_log_probs(hidden.flatten(0, 1), self._weight, response.flatten(), self._bias)
        return found.view(response.shape)

    def _hidden(self, numbers: Tensor, inside: Tensor, cache: Any = None) -> Tensor:
        """Last hidden states [B, L, d] of tokens [B, L], the last ones of those whose mask is `inside` [B, n]."""
        place = (inside.long().cumsum(-1) - 1).clamp(min=0)[:, -numbers.shape[-1] :]
        with torch.autocast(numbers.device.type, torch.bfloat16, enabled=self.tuning.bfloat16):
            body = getattr(self.net, self.net.base_model_prefix)
            found: Tensor = body(
                input_ids=numbers,
                attention_mask=inside.long(),
                position_ids=place,
                use_cache=cache is not None,
                **{self._cache: cache},  # transformers 5.24 renamed it
            ).last_hidden_state
        return found

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.linear(hidden.float(), self._weight, self._bias)

    def _sample(self, prompt: Tensor, mask: Tensor, end: int, uniform: Tensor | None) -> tuple[Tensor, ...]:
        """Numbers, mask, log-probabilities and entropies, [B, T] each, of responses to prompts [B, P]."""
        from transformers import DynamicCache

        first = int((mask > 0).any(0).long().argmax())
        prompt, mask = prompt[:, first:], mask[:, first:]
        rows, length = prompt.shape
        inside = torch.cat((mask, mask.new_zeros(rows, self.response)), -1)
        shape = (rows, self.response)
        numbers = torch.full(shape, end, device=prompt.device)
        log_probs, entropies = inside.new_zeros(shape), inside.new_zeros(shape)
        cache, going = DynamicCache(config=self.net.config), torch.ones(rows, dtype=torch.bool, device=prompt.device)
        last = self._hidden(prompt, inside[:, :length], cache)[:, -1]
        for step in range(self.response):
            log_prob = torch.log_softmax(self._logits(last), -1)
            if uniform is None:
                chosen = log_prob.argmax(-1, keepdim=True)
            else:
                chosen = pick(log_prob.exp(), uniform[step])  # [B, 1]
            numbers[:, step] = chosen[:, 0]
            log_probs[:, step] = log_prob.gather(-1, chosen)[:, 0]
            entropies[:, step] = -(log_prob.exp() * log_prob).sum(-1)
            inside[:, length + step] = going.to(inside.dtype)
            going = going & (chosen[:, 0] != end)
            if step + 1 == self.response or not going.any():
                break
            last = self._hidden(chosen, inside[:, : length + step + 1], cache)[:, -1]
        return numbers, inside[:, length:], log_probs, entropies

    @torch.no_grad()
    def _check_head(self) -> None:
        """Refuses models that do more between hidden states and logits than one product."""
        numbers = torch.arange(1, 5, device=self.net.device)[None] % len(self._weight)
        inside = torch.ones(numbers.shape, device=self.net.device)
        with self._active():
            own = self._logits(self._hidden(numbers, inside))
            with torch.autocast(numbers.device.type, torch.bfloat16, enabled=self.tuning.bfloat16):
                theirs = self.net(input_ids=numbers).logits.float()
        slack = 0.02 if self.tuning.bfloat16 else 0.001
        if not torch.allclose(own, theirs, rtol=slack, atol=slack * float(theirs.abs().max())):
            raise ValueError(
                f"expected logits that are the output layer of the last hidden state, {type(self.net).__name__} has "
                "others; choose a model without soft caps or scales"
            )


def policy_and_reference(
    net: Any, response: int, tuning: Tuning, seeds: Sequence[int], learns: bool
) -> tuple[Pretrained, Pretrained]:
    """Two models that begin as a net does, which itself stays as it is.

    Args:
        net: a transformers causal language model, float32.
        response: longest response.
        tuning: what of the first is trained.
        seeds: one.
        learns: whether the second will take over what the first has learned; else it is the net for good.

    Raises:
        ValueError: for several seeds.
    """
    if len(seeds) != 1:
        raise ValueError(f"expected one seed in a program with a pre-trained model, got {len(seeds)}")
    own = copy.deepcopy(net)
    if tuning.rank and tuning.bfloat16:
        own = own.to(torch.bfloat16)  # nothing of it is trained
    base = Pretrained(own, response, tuning, seeds[0])
    return base.branch("policy"), base.branch("reference") if learns else base


def _key(name: str) -> str:
    """Of a parameter among the state's tensors."""
    return name.replace(".", "/")


# ---- adapters


def _adapted(net: Any) -> Iterator[Any]:
    """The layers that have adapters."""
    return (module for module in net.modules() if hasattr(module, "lora_A"))


def _add_adapters(net: Any, name: str, tuning: Tuning) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=tuning.rank, lora_alpha=2 * tuning.rank, lora_dropout=0.0, target_modules=list(tuning.layers))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are what is meant
            inject_adapter_in_model(config, net, name)
    except ValueError as error:
        names = sorted({each.rpartition(".")[2] for each, part in net.named_modules() if _is_linear(part)})
        raise ValueError(
            f"expected layers to adapt among {', '.join(names)}, got {', '.join(tuning.layers)}"
        ) from error
    for each, parameter in net.named_parameters():
        if f".{name}." in each:
            parameter.data = parameter.data.float()


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _begin(adapters: dict[str, Tensor], seed: int) -> None:
    """As in the paper: the first factor is random (torch's default of a linear layer), the second is zero."""
    for name, tensor in adapters.items():
        if "lora_A" in name:
            bound = tensor.shape[-1] ** -0.5
            drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator_of(seed, "adapter", name))
            tensor.copy_(drawn)
        else:
            tensor.zero_()
