"""`python -m diffulm` equals `diffulm`, so that `torchrun -m diffulm adapt ...` works."""

import os

if __name__ == "__main__":
    try:
        from diffulm.cli import main
    except KeyboardInterrupt:  # before `main` could see to it
        os.write(2, b"diffulm: interrupted\n")
        os._exit(130)
    main()
