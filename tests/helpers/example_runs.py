"""How the tests run the example scripts, and what they read from their output folders."""

import json


def options(folder, *more, **settings):
    quiet = {"output_dir": folder / "out", "report_to": "none", "disable_tqdm": "true", "use_cpu": "true"}
    quiet |= {"cache_dir": folder / "cache", "log_level": "warning", "save_strategy": "no"}
    pairs = [(f"--{name}", str(value)) for name, value in (quiet | settings).items()]
    return [*map(str, more), *(word for pair in pairs for word in pair)]


def results(folder, out="out"):
    return json.loads((folder / out / "all_results.json").read_text())


def log_of(folder, out="out"):
    return json.loads((folder / out / "trainer_state.json").read_text())["log_history"]


def updates(folder):
    return [row["srigl/dropped"] for row in log_of(folder) if "srigl/dropped" in row]
