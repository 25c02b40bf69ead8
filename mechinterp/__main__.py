"""The command line: python -m mechinterp."""

from mechinterp.cli import main

raise SystemExit(main())
