"""Ours against a torch + peft loop on the same work; run it with `bash launch/bench.sh`."""
