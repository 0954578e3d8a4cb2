"""The program: `feddpa` and `python -m feddpa_jax`. Importing this makes the process ready for it.

What is imported before the first lines below cannot be interrupted cleanly: next to nothing.
"""

from feddpa_jax.cli import interrupt

interrupt.install()

from feddpa_jax.cli.program import program

if __name__ == "__main__":
    program()
