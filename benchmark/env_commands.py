"""The commands around environments."""

from __future__ import annotations

from pathlib import Path

from offon import envs
from offon.benchmark.options import parse_option


def show_all() -> int:
    """List the environments that have a name of their own, and why some cannot be made here."""
    for env_id in envs.env_ids():
        try:
            spec = envs.env_spec(env_id)
        except envs.EnvError as error:
            print(f"{env_id:32}{error}")
            continue
        cost = "  with costs" if spec.has_cost else ""
        print(f"{env_id:32}{spec.obs_dim:4} observed {spec.act_dim:3} acted on {spec.horizon:5} steps{cost}")
    print("and comblock/H5 (any horizon), linear-mdp/..., gymnasium/ID, gymnasium/module:ID for one of your own")
    return 0


def check(env_id: str, given: list[str]) -> int:
    """Try an environment out and print what holds and what does not."""
    from offon.benchmark.env_check import report

    return report(env_id, dict(parse_option(text, "dynamics.") for text in given))


def import_weights(checkout: Path) -> int:
    """Take the weights of neorl2/Fusion from a checkout."""
    from offon.envs.fusion_import import import_weights

    print(f"the networks do what they should; wrote {import_weights(checkout)}")
    return 0
