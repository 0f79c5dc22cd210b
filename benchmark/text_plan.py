"""What a run on texts is planned with: its task, and the settings that only such runs have."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from offon.benchmark.config import ConfigError
from offon.benchmark.options import RunOptions
from offon.benchmark.tasks import Task, get_task, own_task
from offon.benchmark.text_data import Texts
from offon.benchmark.text_reward import ENV

_OF_TRANSITIONS = ("env", "horizon", "score_min", "score_max", "cost_limit", "clip_actions")


def text_task(options: RunOptions, dataset: str) -> Task:
    """The named task, or one around a file of the user's own.

    Args:
        options: of the run.
        dataset: path of the file; empty for a named task.

    Raises:
        ConfigError: if an option is given that only transitions have.
    """
    given = [name for name in _OF_TRANSITIONS if getattr(options, name) != getattr(RunOptions, name)]
    given += [name for name in ("dynamics", "corruption") if getattr(options, name)]
    if given:
        named = ", ".join(given)
        raise ConfigError(f"{dataset or options.task} holds dialogues, whose rewards lie in [0, 1]: leave {named} out")
    if not dataset:
        return get_task(options.task)
    own = own_task(dataset, None, None, None, None)
    name = own.name.removesuffix(".jsonl")
    return replace(own, name=name, score_min=0.0, score_max=1.0, score_source="range of the reward")


def task_of_texts(task: Task, options: RunOptions, texts: Texts) -> Task:
    """The task with what its texts say: who judges, how long responses are, how many prompts there are to judge by.

    Raises:
        ConfigError: if more test prompts are asked for than there are.
    """
    asked, there = options.final_episodes, len(texts.test.last)
    if asked > there:
        raise ConfigError(f"expected final_episodes of at most {there}, the test prompts of {task.name}, got {asked}")
    env, horizon = f"{ENV}{texts.options.reward}", texts.options.response_words
    return replace(task, env=env, horizon=horizon, final_episodes=min(task.final_episodes, there))


def text_settings(settings: dict[str, Any], options: RunOptions, texts: Texts) -> dict[str, Any]:
    """Settings of a run, with what only runs on texts have."""
    return settings | {
        "samples": options.samples,
        "eval_episodes": min(settings["eval_episodes"], len(texts.dev.last)),
    }
