"""``python -m gateway`` is the ``headgate`` command."""

from gateway.cli import main

raise SystemExit(main())
