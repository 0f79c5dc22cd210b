"""`offon doctor`: what is installed, what the machine has, which data is found."""

from __future__ import annotations

import json

from offon.benchmark import provenance


def report(as_json: bool) -> int:
    """Prints versions, hardware and data; always succeeds, it only looks."""
    import torch

    from offon.datasets.catalogue import DATASETS
    from offon.datasets.errors import DataError, DataNotFound
    from offon.datasets.hashes import sha256_of
    from offon.datasets.load import check_hash, resolve

    data = {}
    for name in DATASETS:
        try:
            known, path = resolve(name)
            if known is not None:
                check_hash(known, path, sha256_of(path))
            data[name] = str(path)
        except DataNotFound:
            data[name] = "not found"
        except (DataError, OSError) as error:
            data[name] = f"not usable: {str(error).split('. ')[0]}"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {**provenance.describe(device), "cuda": torch.version.cuda, "device": device, "data": data}
    if as_json:
        print(json.dumps(found, indent=1, sort_keys=True))
        return 0
    for name, version in found["versions"].items():
        print(f"{name:<14}{version}")
    hardware = found["hardware"]
    print(f"{'device':<14}{device}{'' if device == 'cuda' else ' (no GPU seen: training runs on the CPU)'}")
    print(f"{'cpu':<14}{hardware['cpu']}, {hardware['host_cores']} cores\n{'gpu':<14}{hardware['gpu'] or 'none'}")
    if "mujoco" not in found["versions"]:
        print(f'{"mujoco":<14}not installed (MuJoCo environments: pip install "offon[mujoco]")')
    print("data")
    for name, where in data.items():
        print(f"  {name:<30}{where}")
    return 0
