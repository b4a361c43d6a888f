"""llama.cpp in a process of its own, for a library that is built for another processor, or a spoilt file, can kill one.

`python -m llamanet.doctor.engine vocabulary|weights FILE...` prints one line of JSON: `version`, `features`, `offload`,
and `failures`, a list of [file, why it does not load]. With `vocabulary` only the vocabulary of each file is loaded,
which takes a moment, and finds a file of an unknown architecture; with `weights` all of it is.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from llamanet.doctor.facts import Engine

LOAD_S = 300.0
"""For llama.cpp to load all files."""


def look_at_engine(files: tuple[Path, ...], *, weights: bool) -> Engine:
    """What llama.cpp can do here, and whether it loads `files`, their weights too if asked for. Blocks."""
    command = [sys.executable, "-m", "llamanet.doctor.engine", "weights" if weights else "vocabulary"]
    try:
        child = subprocess.run(
            [*command, *map(str, files)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LOAD_S
        )
    except subprocess.TimeoutExpired:
        return Engine(version="", problem=f"it did not load the models within {LOAD_S:.0f} s")
    if child.returncode == 0:
        told = json.loads(child.stdout.splitlines()[-1])
        failures = tuple((file, why) for file, why in told["failures"])
        return Engine(
            version=told["version"], features=tuple(told["features"]), offload=told["offload"], failures=failures
        )
    if "No module named 'llama_cpp'" in child.stderr:
        return Engine(version=None)
    last = (child.stderr.strip().splitlines() or ["it says nothing"])[-1]
    how = f"signal {-child.returncode}" if child.returncode < 0 else f"status {child.returncode}"
    return Engine(version="", problem=f"it ended with {how}: {last}")


def _tell(weights: bool, files: list[str]) -> None:
    import llama_cpp
    import llama_cpp.llama_cpp as lib

    errors: list[str] = []

    @lib.llama_log_callback  # type: ignore[untyped-decorator]  # the library has no types
    def on_log(level: int, text: bytes, _: object) -> None:
        if level == 4:  # GGML_LOG_LEVEL_ERROR in ggml.h
            errors.append(text.decode(errors="replace").strip())

    lib.llama_log_set(on_log, ctypes.c_void_p(None))
    lib.llama_backend_init()
    failures = []
    for file in files:
        errors.clear()
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = not weights
        model = lib.llama_model_load_from_file(os.fsencode(file), parameters)
        if model:
            lib.llama_model_free(model)
        else:
            failures.append((file, errors[0] if errors else "llama.cpp does not say why"))
    features = re.findall(r"(\w+) = 1", lib.llama_print_system_info().decode(errors="replace"))
    offload = bool(lib.llama_supports_gpu_offload())
    told = {"version": llama_cpp.__version__, "features": features, "offload": offload, "failures": failures}
    print(json.dumps(told))


if __name__ == "__main__":
    _tell(sys.argv[1] == "weights", sys.argv[2:])
