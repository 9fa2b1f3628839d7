"""`python -m ptft` and the command `ptft`."""

import sys
import traceback
from collections.abc import Sequence

from ptft.core import signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb to its end, or until a signal; the exit code."""
    with signals.guard():  # before the imports, which take a while
        from ptft.cli.main import main as run

        try:
            code = run(argv)
        except signals.Stopped as e:
            code = e.status
        except SystemExit:  # all processes have saved
            raise
        except BaseException:
            if not signals.swallowed():
                traceback.print_exc()
            code = 1
        code = code and (signals.swallowed() or code)  # what is done is done
        if code and "jax" in sys.modules:
            from ptft.core import mesh

            mesh.leave(code)
        return code


if __name__ == "__main__":
    raise SystemExit(main())
