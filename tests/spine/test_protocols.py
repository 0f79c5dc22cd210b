"""Which loop a method runs under, and the options of simulators and generated data."""

from __future__ import annotations

import pytest

from offon.benchmark.generated import data_options, is_generated, resolved
from offon.benchmark.protocols import PROTOCOLS, ProtocolError, choose
from offon.datasets.errors import DataError

LOCK = ("offline", "hybrid", "on_policy_hybrid")


def test_a_method_runs_under_its_first_protocol_that_the_task_allows():
    assert choose("", ("experiment_design", "on_policy_hybrid"), LOCK, "m", "t").name == "on_policy_hybrid"
    assert choose("on_policy_hybrid", ("offline", "on_policy_hybrid"), LOCK, "m", "t").name == "on_policy_hybrid"


def test_a_pair_that_does_not_go_together_is_refused_with_what_does():
    with pytest.raises(ProtocolError, match="iql and linear-mdp/E1 do not run together: iql runs under offline, lin"):
        choose("", ("offline",), ("experiment_design",), "iql", "linear-mdp/E1")
    with pytest.raises(ProtocolError, match="do not run under protocol offline: hnpg runs under on_policy_hybrid"):
        choose("offline", ("on_policy_hybrid",), LOCK, "hnpg", "comblock/H5")
    with pytest.raises(ProtocolError, match="no protocol 'of_line'; there are offline"):
        choose("of_line", ("offline",), LOCK, "bc", "comblock/H5")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_a_protocol_names_code_that_stands(protocol):
    module = protocol.load()
    assert callable(getattr(module, protocol.training)) and callable(module.make_stepper)
    assert protocol.budget in ("updates", "env_steps")


def test_the_options_of_generated_data_are_checked_by_name_and_type():
    assert is_generated("comblock/H5") and not is_generated("neorl2/DMSD")
    assert data_options("comblock/H5", {"episodes": 7}).episodes == 7
    with pytest.raises(DataError, match="has no option data.episode; did you mean data.episodes?"):
        data_options("comblock/H5", {"episode": 7})
    with pytest.raises(DataError, match="expected data.episodes of type int, got 'many'"):
        data_options("comblock/H5", {"episodes": "many"})


def test_an_option_given_as_it_is_by_default_makes_no_other_cell():
    assert resolved("comblock/H5", {"episodes": 50_000}) == resolved("comblock/H5", {})
    assert resolved("comblock/H5", {"seed": 3}) != resolved("comblock/H5", {})


def test_options_of_the_simulator_go_to_the_simulator_alone(offon, tmp_path):
    out = f"out={tmp_path / 'out'}"
    done = offon("run", "algorithm=bc", "task=comblock/H5", "dynamics.gravity=2", out)
    assert done.status == 2 and "comblock/H5 has no option 'gravity', given as dynamics.gravity" in done.err
    done = offon("run", "algorithm=bc", "task=comblock/H5", "dynamics.anti_reward=sweet", out)
    assert done.status == 2 and "anti_reward" in done.err
    done = offon("run", "algorithm=bc", "data.episodes=5", out)
    assert done.status == 2 and "logged data have no option data.episodes. There are: density_max" in done.err
    done = offon("run", "algorithm=bc", "task=comblock/H5", "data.episodes=[1,2]", out)
    assert done.status == 2 and "expected one number, word or truth value for data.episodes" in done.err
    assert not (tmp_path / "out").exists()


def test_a_dynamics_option_is_part_of_the_cell(train):
    tiny = ("algorithm=bc", "task=comblock/H5", "data.episodes=50", "updates=20", "eval_every=20", "seeds=[0]")
    folder = train(*tiny)
    train(*tiny, "dynamics.instance=3", out=folder)
    cells = [record.cell for record in folder.records.values()]
    assert sorted(str(cell["env"].get("options")) for cell in cells) == ["None", "{'instance': 3}"]
    assert [cell["data"]["options"]["episodes"] for cell in cells] == [50, 50]
    assert len({cell["data"]["sha256"] for cell in cells}) == 2  # the lock that made the data is another one


def test_an_offline_method_trains_on_a_lock_and_is_scored(train):
    folder = train("algorithm=bc", "task=comblock/H5", "data.episodes=200", "updates=50", "eval_every=50")
    (first, *_) = folder.records.values()
    assert first.cell["protocol"] == {"name": "offline", "updates": {"offline": 50}}
    assert first.result["report"]["data_status"] == "generated" and "summary" not in first.result


def test_data_that_are_generated_can_be_shown_but_neither_verified_nor_fetched(offon):
    done = offon("data", "show", "comblock/H5")
    assert done.status == 0 and "data.episodes=50000: logged episodes" in done.out
    for action in ("verify", "fetch"):
        done = offon("data", action, "linear-mdp/E2")
        assert done.status == 2 and "generated when they are needed, there is no file" in done.err
