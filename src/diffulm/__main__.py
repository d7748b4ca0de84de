"""`python -m diffulm` equals `diffulm`, so that `torchrun -m diffulm adapt ...` works."""

import sys

if __name__ == "__main__":
    try:
        from diffulm.cli import main
    except KeyboardInterrupt:  # before `main` could see to it
        print("diffulm: interrupted", file=sys.stderr)
        sys.exit(130)
    main()
