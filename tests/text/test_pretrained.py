"""Pre-trained language models: log-probabilities in pieces, padding, sampling, branches with adapters or whole."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from offon.algorithms.noise import Noise
from offon.algorithms.pretrained import Pretrained, Tuning, token_log_probs
from offon.algorithms.sequence_losses import Objective, Scored, sequence_loss

from .conftest import require

END = 1


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor that is made has."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.count = max(self.count, found.numel())
        return found


def test_log_probs_in_pieces_equal_those_of_all_logits_and_so_do_gradients():
    rng = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(600, 4, generator=rng), torch.randn(50, 4, generator=rng)
    numbers = torch.randint(50, (600,), generator=rng)
    factor = torch.randn(600, generator=rng)
    inputs = [hidden.requires_grad_(), weight.requires_grad_()]
    with Largest() as largest:
        found = token_log_probs(*inputs, numbers)
        slope = torch.autograd.grad((found * factor).sum(), inputs)
    assert largest.count == 256 * 50  # of 600 x 50
    expected = torch.log_softmax(hidden @ weight.T, -1).gather(1, numbers[:, None])[:, 0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(slope, torch.autograd.grad((expected * factor).sum(), inputs))


# ---- a tiny random Llama


@pytest.fixture(scope="module")
def net(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)


def made(net, **tuning):
    return Pretrained(copy.deepcopy(net), 5, Tuning(**{"rank": 2, "rows": 3} | tuning), seed=0)


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(1)
    prompt, response = (torch.randint(2, 24, (1, 4, length), generator=rng) for length in (6, 5))
    prompt_mask, mask = torch.ones(prompt.shape), torch.ones(response.shape)
    prompt_mask[:, 1, :4], prompt_mask[:, 2, :1], mask[:, 3, 2:] = 0.0, 0.0, 0.0
    return prompt, prompt_mask, response, mask


def test_log_probs_are_those_of_the_model_itself(net, batch):
    model = made(net)
    found = model.log_prob(*batch)
    for row in range(4):
        prompt, inside, response, mask = (part[0, row] for part in batch)
        asked, length = prompt[inside > 0], int(mask.sum())
        logits = net(torch.cat((asked, response))[None]).logits[0, len(asked) - 1 : -1]
        expected = torch.log_softmax(logits, -1).gather(1, response[:, None])[:length, 0]
        torch.testing.assert_close(found[0, row, :length], expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing_whatever_it_holds_and_no_gradient_is_nan(net, batch):
    prompt, prompt_mask, response, mask = batch
    model = made(net).branch("policy")
    plain = model.log_prob(*batch)
    other = torch.where(prompt_mask > 0, prompt, 23 - prompt)
    wider = [torch.nn.functional.pad(part, (3, 0)) for part in (other, prompt_mask)]
    torch.testing.assert_close(model.log_prob(*wider, response, mask), plain)
    slope = torch.autograd.grad((plain * mask).sum(), list(model.optimizer(0.1, 1.0)._params))
    assert all(each.isfinite().all() for each in slope) and any(each.abs().max() > 0 for each in slope)


def noise():
    found = Noise((0,), "sample", chunk=1)
    found.begin_chunk(0)
    return found


def test_what_is_sampled_has_the_probability_that_reading_it_again_gives(net, batch):
    model = made(net)
    prompt, prompt_mask, _, _ = (part.repeat(1, 8, 1) for part in batch)
    drawn = model.sample(prompt, prompt_mask, END, noise())
    again = model.log_prob(prompt, prompt_mask, drawn.numbers, drawn.mask)
    torch.testing.assert_close(again * drawn.mask, drawn.log_prob * drawn.mask, rtol=1e-4, atol=1e-5)
    ended = (drawn.numbers == END).long().cumsum(-1)
    assert ((ended - (drawn.numbers == END).long() == 0) == (drawn.mask > 0)).all()  # up to and with the end
    assert 0 < ended[..., -1].float().mean() < 1 and drawn.numbers.unique().numel() > 10
    assert not torch.equal(drawn.numbers[0, :4], drawn.numbers[0, 4:8])  # the same prompts, other numbers


def test_greedy_responses_are_those_of_transformers(net, batch):
    prompt, prompt_mask = batch[:2]
    drawn = made(net).sample(prompt, prompt_mask, END, noise(), greedy=True)
    config = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": END, "eos_token_id": END}
    expected = net.generate(prompt[0], attention_mask=prompt_mask[0].long(), **config)[:, 6:]
    expected = torch.nn.functional.pad(expected, (0, 5 - expected.shape[1]), value=END)
    inside = drawn.mask[0] > 0
    assert torch.equal(drawn.numbers[0][inside], expected[inside])


def learn(model, batch, reference, updates=3):
    optimizer = model.optimizer(0.05, 1.0)
    for _ in range(updates):
        scored = Scored(model.log_prob(*batch), reference, batch[3], torch.ones(1, 4), torch.zeros(1, 4))
        loss, info = sequence_loss(scored, Objective("a_lol"))
        optimizer.step(loss)
    return info


@pytest.mark.parametrize("tuning", [{}, {"rank": 0}, {"bfloat16": True}, {"rank": 0, "bfloat16": True}])
def test_a_branch_begins_as_its_parent_and_learns_alone(net, batch, tuning):
    parent = made(net.to(torch.bfloat16) if tuning == {"bfloat16": True} else net.float(), **tuning)
    parent.freeze()
    before = parent.log_prob(*batch).clone()
    assert not before.requires_grad
    child = parent.branch("policy")
    assert torch.equal(child.log_prob(*batch), before)  # the ratio is one
    assert all(each.dtype == torch.float32 and each.shape[0] == 1 for each in child.state().values())
    info = learn(child, batch, before)
    assert info["log_ratio"] > 0.1
    assert torch.equal(parent.log_prob(*batch), before)
    grandchild = child.branch("other")
    assert torch.equal(grandchild.log_prob(*batch), child.log_prob(*batch))
    again = parent.branch("policy")
    assert torch.equal(again.log_prob(*batch), before)
    net.float()


def test_adapters_alone_are_trained_where_there_are_some(net):
    child = made(net, layers=("q_proj", "v_proj")).branch("policy")
    names = child.state()
    assert len(names) == 2 * 2 * 2 and all(".q_proj." in name or ".v_proj." in name for name in names)
    assert sum(each.numel() for each in names.values()) == 2 * 2 * (2 * 16 + 16 + 8)  # rank 2, two layers
    whole = made(net, rank=0).branch("policy")
    assert sum(each.numel() for each in whole.state().values()) == sum(each.numel() for each in net.parameters())


@pytest.mark.parametrize("rank", [0, 2])
def test_a_state_holds_what_is_trained_and_nothing_else(net, batch, rank):
    base = made(net, rank=rank)
    child = base.branch("policy")
    assert not base.state() and not base.state_dict()
    kept = {name: tensor.clone() for name, tensor in child.state_dict().items()}
    assert len(kept) == len(child.state()) and all(each.shape[0] == 1 for each in kept.values())
    before = child.log_prob(*batch).clone()
    learn(child, batch, before.detach())
    assert all(not torch.equal(tensor, kept[name]) for name, tensor in child.state_dict().items())
    for name, tensor in child.state_dict().items():
        tensor.copy_(kept[name])  # as a run that goes on does
    assert torch.equal(child.log_prob(*batch), before)
    learn(child.to("cpu"), batch, before.detach())  # a move leaves the state what is trained
    assert not torch.equal(child.log_prob(*batch), before)
    child.load({name: kept[name.replace(".", "/")] for name in child.state()})
    assert torch.equal(child.log_prob(*batch), before)


def test_layers_that_are_not_there_are_named(net):
    with pytest.raises(ValueError, match="expected layers to adapt among .*q_proj.*, got c_attn"):
        made(net, layers=("c_attn",)).branch("policy")


def test_a_model_that_bends_its_logits_is_refused():
    require()
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
        initializer_range=1.0,
    )
    with pytest.raises(ValueError, match="expected logits that are the output layer of the last hidden state"):
        Pretrained(Gemma2ForCausalLM(config).eval(), 5, Tuning(), seed=0)
