"""Make `.venv` and install LlamaNet into it: `python3 tools/make_venv.py EXTRA` (run, test, lint, docs or bench).

The Makefile calls this when the stamp `.venv/ready-EXTRA` is missing or older than pyproject.toml. Rules:
- Nothing but the standard library, in syntax that an old Python can read, so that an old Python is told what to do.
- What is missing on the machine is one line on standard error and exit status 1.
- pip's own output goes to `.venv/install.log`; while it works, the screen shows what is being done and for how long.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOG = os.path.join(VENV, "install.log")
OLDEST_PYTHON = (3, 10)
COMPILERS = ("c++", "g++", "clang++")
COMPILER_FLAGS = "-U__AMX_INT8__ -U__AVX512FP16__"
"""ggml's code for two of the newest instruction sets: GCC breaks the one, and the other is slower than none."""
COMPILED_FILE = re.compile(r"\s*\[\s*(\d+)/(\d+)\]")
"""How ninja begins its lines: `[12/193]`."""
COMPILING = "compiling llama.cpp (about 8 minutes on two cores, only this once)"
SECONDS_BETWEEN_LINES = 30.0
SECONDS_BETWEEN_DRAWINGS = 0.2


def stop(message):
    sys.exit(f"make: {message}")


def check_python():
    if sys.version_info < OLDEST_PYTHON:
        version = sys.version.split()[0]
        stop(f"Python 3.10 or newer is needed, {sys.executable} is {version}; name another: make PYTHON=python3.12 ...")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        stop(f"{sys.executable} has no module {error.name}; install it (Debian, Ubuntu: apt install python3-venv)")


def runs(code):
    return subprocess.run([PYTHON, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def check_compiler():
    if not os.environ.get("CXX") and not any(shutil.which(name) for name in COMPILERS):
        stop("a C++ compiler is needed to build llama.cpp; install one (Debian, Ubuntu: apt install g++)")


def install(extra):
    """Run pip, and show what it is doing."""
    target = f"{ROOT}[{'gateway' if extra == 'run' else extra}]"
    command = [PYTHON, "-m", "pip", "install", "--verbose", "--disable-pip-version-check", "--editable", target]
    cmake = f'-DCMAKE_C_FLAGS="{COMPILER_FLAGS}" -DCMAKE_CXX_FLAGS="{COMPILER_FLAGS}"'
    environment = {"CMAKE_ARGS": cmake, **os.environ}
    pip = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    screen = Screen()
    reason = "no reason given"
    try:
        with open(LOG, "wb") as log:
            for raw in pip.stdout:
                log.write(raw)
                line = raw.decode(errors="replace").strip()
                if line.lower().startswith(("error:", "fatal error:")):
                    reason = line
                screen.show(line)
        status = pip.wait()
    finally:
        screen.close()
        pip.terminate()
        pip.wait()
    if status:
        stop(f"pip could not install LlamaNet: {reason} (its whole output is in {LOG})")


class Screen:
    """Progress on standard error: a line that is rewritten on a terminal, else a new line now and then."""

    def __init__(self):
        self.doing = "installing into .venv"
        self.start = time.monotonic()
        self.rewrites = sys.stderr.isatty()
        self.closed = threading.Event()
        # Its own thread, for pip can be silent for minutes, and the seconds should go on all the same.
        self.drawer = threading.Thread(target=self.draw, daemon=True)
        self.drawer.start()

    def show(self, line):
        compiled = COMPILED_FILE.match(line)
        if compiled:
            self.doing = f"{COMPILING}: file {compiled.group(1)} of {compiled.group(2)}"
        elif line.startswith("Building wheel for llama"):
            self.doing = COMPILING
        elif line.startswith("Collecting "):
            self.doing = f"getting {line.split()[1]}"
        elif line.startswith("Installing collected packages"):
            self.doing = "installing into .venv"

    def draw(self):
        while True:
            minutes, seconds = divmod(int(time.monotonic() - self.start), 60)
            line = f"{minutes}:{seconds:02}  {self.doing}"
            sys.stderr.write(f"\r\033[K{line}" if self.rewrites else f"{line}\n")
            sys.stderr.flush()
            if self.closed.wait(SECONDS_BETWEEN_DRAWINGS if self.rewrites else SECONDS_BETWEEN_LINES):
                break

    def close(self):
        self.closed.set()
        self.drawer.join()
        if self.rewrites:
            sys.stderr.write("\r\033[K")


def main():
    extra = sys.argv[1]
    check_python()
    if not os.path.exists(PYTHON) or not runs("import pip"):
        made = subprocess.run([sys.executable, "-m", "venv", "--clear", VENV])
        if made.returncode:
            stop(f"{sys.executable} -m venv failed, see above")
    if not runs("import llama_cpp"):
        check_compiler()
    install(extra)
    with open(os.path.join(VENV, f"ready-{extra}"), "w"):
        pass


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
