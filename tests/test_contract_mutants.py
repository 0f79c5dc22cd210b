"""The contract suite itself: each promise is broken by some mutant, and its check must say so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from offon.algorithms.bc import BC
from offon.algorithms.hnpg import TRPO
from offon.algorithms.losses import mse_loss
from offon.algorithms.lsvi import PEVI
from offon.algorithms.nn import MLP
from offon.algorithms.text_lol import TextLoL
from offon.benchmark import contract
from offon.benchmark.contract import CONTRACT, check
from offon.benchmark.watch import ContractError


class Imitation(BC):
    """BC whose loss a mutant bends; without presets, each of which would be checked too."""

    PRESETS = {}

    def bend(self, loss, data, noise):
        return loss

    def update(self, batch, noise):
        data = batch["data"]
        loss = self.bend(mse_loss(self.policy(data.obs), data.action), data, noise)
        self.optimizer.step(loss)
        return {"policy_loss": loss.detach()}


class ChangesItsMetrics(Imitation):
    def update(self, batch, noise):
        metrics = super().update(batch, noise)
        return metrics if noise.turn(2) else {**metrics, "extra": metrics["policy_loss"]}


class ReturnsAScalar(Imitation):
    def update(self, batch, noise):
        return {"policy_loss": super().update(batch, noise)["policy_loss"].mean()}


class KeepsTheGraph(Imitation):
    def update(self, batch, noise):
        super().update(batch, noise)
        return {"policy_loss": self.policy(batch["data"].obs).mean((1, 2))}


class IsNotFinite(Imitation):
    def update(self, batch, noise):
        return {"policy_loss": super().update(batch, noise)["policy_loss"] / 0.0}


class HasStateWithoutReplicas(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.register_buffer("running", torch.zeros(spec.obs_dim))


class CountsInPython(Imitation):
    calls = 0

    def bend(self, loss, data, noise):
        self.calls += 1
        return loss


class AppendsToAList(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.history = []

    def bend(self, loss, data, noise):
        self.history.append(loss.detach())
        return loss


class RebindsABuffer(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.register_buffer("mean_loss", torch.zeros(len(seeds)))

    def bend(self, loss, data, noise):
        self.mean_loss = 0.9 * self.mean_loss + 0.1 * loss.detach()
        return loss


class StartsFromTheGlobalGenerator(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        torch.nn.init.normal_(self.policy.weights[0])


class MixesReplicas(Imitation):
    def bend(self, loss, data, noise):
        return loss / loss.detach().mean()


class LooksAtItsNeighboursInTheBatch(Imitation):
    def bend(self, loss, data, noise):
        return loss + (self.policy(data.obs) - data.action.mean(0)).square().mean((1, 2))


class KnowsItsPlace(Imitation):
    def bend(self, loss, data, noise):
        return loss * torch.arange(1.0, len(self.seeds) + 1) + self.policy(data.obs).mean((1, 2))


class IgnoresTheBatch(Imitation):
    def bend(self, loss, data, noise):
        return self.policy(torch.ones_like(data.obs)).square().mean((1, 2)) + 0.0 * loss


class UsesANameTwice(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.other = MLP(seeds, "policy", (spec.obs_dim, *config.hidden_dims, 1))


class DrawsByItself(Imitation):
    def bend(self, loss, data, noise):
        return loss + 0.0 * torch.rand_like(loss)


class DropsOutByItself(Imitation):
    def bend(self, loss, data, noise):
        return loss + 0.0 * torch.nn.functional.dropout(data.obs, 0.1).sum((1, 2))


class WaitsForTheDevice(Imitation):
    def bend(self, loss, data, noise):
        return loss if float(loss.detach().sum()) > 0 else 2 * loss


class IndexesWithAMask(Imitation):
    def bend(self, loss, data, noise):
        return loss + 0.0 * data.reward[data.reward > 0].sum()


class IsLong(Imitation):
    def bend(self, loss, data, noise):
        for _ in range(contract.OPERATIONS_BUDGET):
            loss = loss * 1.0
        return loss


class ForgetsOnResume(Imitation):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        self.steps = torch.zeros(len(seeds))  # no buffer: not in the state

    def bend(self, loss, data, noise):
        return loss + self.steps.add_(1.0) * self.policy(data.obs).square().mean((1, 2))


class ForgetsWhatItPlayed(ForgetsOnResume):
    protocols = ("offline_to_online",)


class HasASettingJsonChanges(Imitation):
    @dataclass(frozen=True)
    class Config(BC.Config):
        stages: tuple[tuple[int, float], ...] = ((0, 0.1), (10, 0.2))  # update and rate of each stage


class HasAnUndocumentedSetting(Imitation):
    @dataclass(frozen=True)
    class Config(BC.Config):
        strength: float = 1.0


class ActsOutOfBounds(Imitation):
    def act(self, x, noise, mode):
        return 1.5 * torch.ones_like(x.action)


class ActsInTheWrongShape(Imitation):
    def act(self, x, noise, mode):
        return self.policy(x.obs).mean(1)


class ActsByTheGlobalGenerator(Imitation):
    def act(self, x, noise, mode):
        return torch.rand_like(x.action)


class LearnsWhileActing(Imitation):
    def act(self, x, noise, mode):
        self.optimizer.count.add_(1.0)
        return self.policy(x.obs)


class ActsForItsNeighbours(Imitation):
    def act(self, x, noise, mode):
        return self.policy(x.obs - x.obs.mean((0, 1)))


class ActsForOtherEpisodes(Imitation):
    def act(self, x, noise, mode):
        return self.policy(x.obs - x.obs.mean(1, keepdim=True))


class LearnsNothing(Imitation):
    def bend(self, loss, data, noise):
        return self.policy(data.obs).add(0.5).square().mean((1, 2)) + 0.0 * loss


class PlaysInVain(TRPO):
    def iterate(self, rollout, batch, noise):
        return {"return": rollout.reward.sum(2).mean(1)}


class AnswersTheWorst(PEVI):
    def answer(self):
        return self.scores(-1.0).argmin(-1)


class SpeaksForItsNeighbours(TextLoL):
    def __init__(self, spec, config, seeds):
        super().__init__(spec, config, seeds)
        own = self.policy.log_prob
        self.policy.log_prob = lambda *asked: own(*asked) + own(*asked).mean(0)


class LearnsTheWorse(TextLoL):
    def row_weights(self, reward, value):
        return (value - reward).clamp(min=0.0)

    def update(self, batch, noise):
        return super().update(replace(batch, reward=batch.value, value=batch.reward), noise)


@pytest.mark.parametrize(
    "method, promise, sentence",
    [
        (ChangesItsMetrics, "metrics_are_finite_and_keep_their_keys", "returns metrics"),
        (ReturnsAScalar, "metrics_are_finite_and_keep_their_keys", "one value per replica"),
        (KeepsTheGraph, "metrics_are_finite_and_keep_their_keys", "detach"),
        (IsNotFinite, "metrics_are_finite_and_keep_their_keys", "not finite at update 0"),
        (HasStateWithoutReplicas, "state_has_a_replica_axis_or_none", "'running' is .3,., expected a leading axis"),
        (CountsInPython, "update_rebinds_nothing", "update changes calls"),
        (AppendsToAList, "update_rebinds_nothing", "update changes history"),
        (RebindsABuffer, "update_rebinds_nothing", "update changes mean_loss"),
        (StartsFromTheGlobalGenerator, "same_seeds_give_the_same_bits", "policy.weights.0"),
        (StartsFromTheGlobalGenerator, "noise_is_the_only_randomness", "global random generator"),
        (MixesReplicas, "another_replicas_data_change_nothing", "neighbour has other data"),
        (MixesReplicas, "another_replicas_parameters_change_nothing", "neighbour has other parameters"),
        (MixesReplicas, "a_broken_replica_leaves_the_others_alone", "neighbour has NaN parameters"),
        (LooksAtItsNeighboursInTheBatch, "another_replicas_data_change_nothing", "neighbour has other data"),
        (IgnoresTheBatch, "another_replicas_data_change_nothing", "trains as if nothing had changed"),
        (KnowsItsPlace, "one_replica_alone_agrees", "the parameters differ by"),
        (UsesANameTwice, "equal_nets_start_different", "policy.weights.0.* and other.weights.0.* start equal"),
        (DrawsByItself, "noise_is_the_only_randomness", "aten::rand_like draws random numbers"),
        (DropsOutByItself, "noise_is_the_only_randomness", "draws random numbers"),
        (ActsByTheGlobalGenerator, "noise_is_the_only_randomness", "aten::rand_like draws random numbers"),
        (WaitsForTheDevice, "update_never_waits_for_the_device", "Tensor.__float__ waits for the GPU"),
        (IndexesWithAMask, "update_never_waits_for_the_device", "indexing with a mask"),
        (IsLong, "operations_stay_within_the_budget", "operations, expected at most 400"),
        (ForgetsOnResume, "resume_is_bit_equal", "a resumed run and one never stopped"),
        (HasASettingJsonChanges, "config_survives_json", "comes back from JSON as"),
        (HasAnUndocumentedSetting, "every_setting_is_documented", "write a comment behind strength"),
        (ActsOutOfBounds, "acting_is_a_function_of_its_inputs", r"leaves \[-1, 1\]"),
        (ActsInTheWrongShape, "acting_is_a_function_of_its_inputs", r"expected \[R, N, A\] = \(4, 64, 2\)"),
        (ActsByTheGlobalGenerator, "acting_is_a_function_of_its_inputs", "two answers to one question"),
        (LearnsWhileActing, "acting_is_a_function_of_its_inputs", "before and after acting"),
        (ActsForItsNeighbours, "acting_is_a_function_of_its_inputs", "one replica's observation moves another"),
        (ActsForOtherEpisodes, "acting_is_a_function_of_its_inputs", "one episode's observation moves another"),
        (ForgetsWhatItPlayed, "acting_in_two_environments_goes_on_after_a_stop", "resumed, and one never stopped"),
        (LearnsNothing, "a_five_state_chain_is_learned", "steps too many"),
        (PlaysInVain, "a_short_lock_is_opened_more_often", "after 40 iterations the replicas earn"),
        (AnswersTheWorst, "a_small_mdp_is_solved", "below the best value, expected"),
        (SpeaksForItsNeighbours, "responding_is_a_function_of_its_inputs", "what one replica is asked moves another"),
        (LearnsTheWorse, "a_rewarded_word_is_said_more_often", "if it is rewarded, expected 0.1 more"),
    ],
)
def test_a_broken_promise_is_caught(method, promise, sentence):
    found = next(each for each in CONTRACT if each.name == promise)
    with pytest.raises(ContractError, match=sentence):
        found.check(method, None)


def test_each_promise_that_runs_here_is_broken_by_some_mutant():
    tested = {case[1] for case in test_a_broken_promise_is_caught.pytestmark[0].args[1]}
    assert {promise.name for promise in CONTRACT if not promise.needs} == tested


def test_check_goes_on_after_a_failure_and_names_other_errors(monkeypatch):
    outcomes = {outcome.name: outcome for outcome in check(HasAnUndocumentedSetting)}
    assert len(outcomes) == len([promise for promise in CONTRACT if issubclass(BC, promise.kinds)])
    failed = {name for name, outcome in outcomes.items() if outcome.state == "failed"}
    assert failed == {"every_setting_is_documented"}

    class Crashes(Imitation):
        def update(self, batch, noise):
            raise KeyError("rewards")

    monkeypatch.setattr(contract, "CONTRACT", CONTRACT[:1])
    assert [tuple(outcome) for outcome in check(Crashes)] == [(CONTRACT[0].name, "failed", "KeyError: 'rewards'")]
