"""`python -m diffulm` equals `diffulm`, so that `torchrun -m diffulm adapt ...` works."""

from diffulm.cli import main

if __name__ == "__main__":
    main()
