"""What tells cells apart: identities flattened to fields, and the fields that differ spelled out in a suffix."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from offon.datasets.changes import other_data
from offon.datasets.corruption import corruption_of, describe, is_noted

COMPARED_AS = {"on_policy_hybrid": "hybrid"}  # protocols that spend the same: logged data and environment steps
FIELDS_SHOWN = 4  # a longer list makes no readable name; the cell's id is added where the first few do not suffice


def setting(identity: Mapping[str, Any]) -> dict[str, str]:
    """What must be equal for two rows of a task to be ranked against each other, whatever the method."""
    data = identity.get("data") or {}
    own = {key: identity["task"][key] for key in ("score_min", "score_max") if key in identity["task"]}
    task = {"version": identity["task"].get("version")} | own  # only own tasks carry their references
    # generated data are named by what was asked for; a hash would say the same and tell nobody anything
    known = {key: data.get(key) for key in ("name", "sha256")} if "options" not in data else data["options"]
    transforms = data.get("transforms") or ()
    corruption = describe(corruption_of(transforms))
    where = {
        "env": identity.get("env"),
        "data": known,
        "simulator": identity.get("simulator") or {},
        "corruption": corruption,
        "changes": other_data(transforms),
    }
    return _flat(task | where) | suite_setting(identity)


def suite_setting(identity: Mapping[str, Any]) -> dict[str, str]:
    """The part of the setting that all tasks of a suite share."""
    evaluation, protocol = identity.get("evaluation") or {}, identity.get("protocol") or {}
    return _flat(
        {
            "final_episodes": evaluation.get("final_episodes"),
            "final_first_seed": evaluation.get("final_first_seed"),
            "protocol": COMPARED_AS.get(str(protocol.get("name")), protocol.get("name")),
            "protocol_version": identity.get("protocol_version"),
        }
    )


def variant(identity: Mapping[str, Any]) -> dict[str, str]:
    """The rest of an identity: what the method's author or its user chose."""
    protocol = {"envs_per_seed": 1}  # as it is where an identity does not say it
    protocol |= {key: value for key, value in (identity.get("protocol") or {}).items() if key != "name"}
    evaluation = identity.get("evaluation") or {}
    rest = {
        "method": identity.get("method"),
        "evaluation": {key: evaluation.get(key) for key in ("every", "episodes")},
        "transforms": [each for each in (identity.get("data") or {}).get("transforms") or () if not is_noted(each)],
    }
    limit = {"cost_limit": identity["cost_limit"]} if "cost_limit" in identity else {}
    return _flat(limit) | _flat(identity.get("config") or {}) | _flat(protocol) | _flat(rest)


def suffixes(
    facts: Sequence[Mapping[str, str]], within: Sequence[str] | None = None, most: int | None = FIELDS_SHOWN
) -> list[str]:
    """For each set of facts " (field=value, ...)" with the fields that differ, or "" where none does.

    Args:
        facts: one set of fields per cell.
        within: one group name per cell; a field then counts only if it differs inside a group.
        most: fields shown at most; None shows all, so that equal suffixes mean equal facts.
    """
    groups = within or [""] * len(facts)
    names: dict[str, None] = {}
    for group in dict.fromkeys(groups):
        members = [fact for fact, own in zip(facts, groups, strict=True) if own == group]
        names.update(dict.fromkeys(_differing(members)))
    shown = list(names)[:most]
    return [f" ({', '.join(f'{name}={fact.get(name)}' for name in shown)})" if shown else "" for fact in facts]


def _differing(facts: Sequence[Mapping[str, str]]) -> list[str]:
    names = dict.fromkeys(name for fact in facts for name in fact)
    return [name for name in names if len({fact.get(name) for fact in facts}) > 1]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            flat[prefix + key] = text[:8] if key.endswith("sha256") else text
    return flat
