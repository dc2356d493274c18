#!/usr/bin/env bash
# The packages installed as a wheel, without a checkout: every file is in it, and a sweep keeps its runs in the working folder.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/wheel build/installed build/elsewhere
python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
python -m pip install --quiet --no-deps --target build/installed build/wheel/*.whl
git ls-files semidavil sweeps analysis | while read -r file; do
  test -e "build/installed/$file" || { echo "the wheel lacks $file"; exit 1; }
done
mkdir -p build/elsewhere data
ln -s "$PWD/data" build/elsewhere/data
export PYTHONPATH="$PWD/build/installed"
cd build/elsewhere
python -m semidavil --version
python -m sweeps run --grid attention_controls --only fusion=none,blank --set training.steps=20
python -m analysis --only attention_controls
test -s mlflow.db && test -s figures/attention_controls_table.pdf
