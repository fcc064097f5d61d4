"""`python -m codec`, for launchers that start modules: `torchrun -m codec train ...`."""

from codec.cli.main import run

if __name__ == "__main__":
    run()
