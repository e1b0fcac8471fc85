"""`python -m stexpr` is `stexpr`."""

from stexpr.cli import main

main()
