"""What goes wrong with each known data set: shown by `offon data show`."""

from __future__ import annotations

PIPELINE_STALE = (
    "this Pipeline file is the one of the GitHub repository polixir/neorl2_dataset, not the published one: its MD5 "
    "differs from NeoRL-2's own table, the train file's mean return is -421.4 (score -11.98) instead of 429.0 (69.25), "
    "and all actions lie within 0.028 of zero"
)
NO_CHECKSUM = "no checksum is published: the first download is trusted, its sha256 noted and later files held to it"
_SAME_STARTS = "train and val start from the same initial observations, trajectory by trajectory; val is no fresh draw"
_NO_SPEEDING = "trajectories with any reward under -99 were dropped when it was collected"
_UNSCALED = (
    "IQL as published, on observations as they are, ends here in {}; with algorithm.normalize_obs=true it does not"
)
_PIPELINE_FILE = (
    "the Pipeline files of the GitHub repository polixir/neorl2_dataset are stale and refused; neorl2/{} names them",
    _SAME_STARTS,
)
_DOOR = "25 demonstrations cut by time; the successor of the last step of each is unknown, so that row is dropped"
_FUSION = (
    "the first 20 trajectories of the val file, taken to be what get_dataset() returns for train: their mean return is "
    "the published one to the last digit; the five val trajectories of the benchmark are among them"
)

TRAPS: dict[str, tuple[str, ...]] = {
    "neorl2/DMSD": (_SAME_STARTS,),
    "neorl2/DMSD-val": (_SAME_STARTS,),
    "neorl2/Fusion": (_FUSION, "all trajectories start in one state"),
    "neorl2/Fusion-first20": (_FUSION, "a file of its own with the same transitions as neorl2/Fusion"),
    "neorl2/Fusion-all": ("get_dataset() returns only the first 20 of these 1,000 trajectories: see neorl2/Fusion",),
    "neorl2/Fusion-val": ("get_dataset() returns only the first 5; its first 20 are the train set of neorl2/Fusion",),
    "neorl2/Pipeline": tuple(text.format("Pipeline-stale") for text in _PIPELINE_FILE),
    "neorl2/Pipeline-val": tuple(text.format("Pipeline-stale-val") for text in _PIPELINE_FILE),
    "neorl2/Pipeline-stale": (PIPELINE_STALE + "; do not score it against the published results",),
    "neorl2/Pipeline-stale-val": ("stale like the train file of its repository; a single constant action throughout",),
    "neorl2/RocketRecovery": ("the benchmark uses only the first 100 trajectories, and so does this reader",),
    "neorl2/RocketRecovery-val": ("the benchmark uses only the first 25 trajectories; all 146 are read here",),
    "neorl2/SafetyHalfCheetah": (_NO_SPEEDING, _UNSCALED.format("running over the speed limit")),
    "neorl2/SafetyHalfCheetah-val": (_NO_SPEEDING,),
    "neorl2/Salespromotion": ("dropped from the published benchmark: there is no result to compare with",),
    "neorl2/Salespromotion-val": ("dropped from the published benchmark: there is no result to compare with",),
    "neorl2/Simglucose": (_SAME_STARTS, _UNSCALED.format("a corner of the action space, whatever the data")),
    "neorl2/Simglucose-val": (_SAME_STARTS,),
    "d4rl/door-human-v0": (
        "'timeouts' marks step 200 of each demonstration and 'terminals' its true end: read as cut at 'terminals'",
        _DOOR,
        "no checksum is published for it: that it is the original rests on its name, shapes and the Minari copy",
    ),
    "dapg/door-human": (_DOOR, "observations differ slightly from D4RL's, which re-simulated them"),
    "minari/door-human-v2-flat": ("rewards are of AdroitHandDoor-v1 and differ by up to 0.14 a step from D4RL's",),
}

_DSRL = (
    "successors are stored and belong to their rows; rows after the last end flag belong to no episode (drop_open_tail)"
)
_REWARDLESS = (
    "one reward and terminal of 1 per episode, other antmaze sets have several (D4RL issue 199)"
)
# (beginning of the name, what it ends with, text): all that fit are shown
_FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("d4rl/antmaze", "-v0", "timeouts are out of step with the true ends: the ant jumps (D4RL issue 77)"),
    ("d4rl/antmaze", "-v0", "not comparable with v2"),
    ("d4rl/antmaze", "-v2", "made anew to mend the timeouts of v0 (D4RL pull request 128); not comparable with v0"),
    ("d4rl/antmaze", "", "rewards are 0 and 1: without algorithm.reward=minus_one methods score near zero"),
    ("d4rl/antmaze", "", "published numbers drop timeout rows; pieces of 1000 rows then straddle episodes"),
    ("d4rl/antmaze-umaze-diverse", "", _REWARDLESS),
    ("d4rl/maze2d", "", "rewards are off by one: reward[t] is of obs[t] (D4RL issue 194)"),
    ("d4rl/maze2d-eval", "", "for evaluation only, and without reference scores"),
    ("d4rl/carla", "", "observations are images, which are not read here"),
    ("d4rl/minigrid", "", "actions are discrete, which are not read here"),
    ("d4rl/door-human", "-v1", "the v1 file is another file than v0's"),
    ("minari/D4RL/antmaze", "", "collected anew with another ant: D4RL's antmaze scores do not apply"),
    ("minari/D4RL/pointmaze", "", "collected anew: not equivalent to D4RL's maze2d, whose scores do not apply"),
    ("minari/D4RL/minigrid", "", "actions are discrete, which are not read here"),
    ("minari/D4RL", "", "dictionaries of observations stand side by side in the order of names; data.obs=A+B chooses"),
    ("minari/D4RL", "", "the address follows the layout of the publisher's page and was not tried"),
    ("dsrl/", "", _DSRL),
    ("dsrl/CarButton2", "", "the published least return equals AntRun's to all digits: a copy error, kept"),
    ("dsrl/", "Velocity", "of the v1 environments; results on Velocity-v0 have other thresholds"),
    ("dsrl/MetaDrive", "", "its simulator needs the old gym package: train here, evaluate elsewhere"),
    ("dsrl/CarCircle2", "", "the greatest stored cost is 398, the file's name says 400"),
    ("dsrl/PointCircle2", "", "the greatest stored cost is 299, the file's name says 300"),
)  # fmt: skip
_GYM_V0 = ("d4rl/hopper", "d4rl/halfcheetah", "d4rl/walker2d", "d4rl/ant-")
_V0 = "v0 files may have no timeouts: episodes are then cut after 1000 rows, as D4RL does it; not comparable with v2"
_FLAGS = "stored successors are used; D4RL's qlearning_dataset takes the following row and drops timed-out ones"


def traps_of(name: str, has_hash: bool = True) -> tuple[str, ...]:
    """Return what to know before using a data set, special remarks first."""
    found = list(TRAPS.get(name, ()))
    found += [text for start, end, text in _FAMILIES if name.startswith(start) and name.endswith(end)]
    if name.startswith(_GYM_V0):
        found.append(_V0 if name.endswith("-v0") else _FLAGS)
    return (*found, *(() if has_hash else (NO_CHECKSUM,)))
