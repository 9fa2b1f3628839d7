"""`python -m ptft` and the command `ptft`."""

import traceback

from ptft.core import signals


def main() -> int:
    with signals.guard():  # before the imports, which take a while
        from ptft.cli.main import main as run
        from ptft.core import mesh

        try:
            code = run()
        except signals.Stopped as e:
            code = e.status
        except SystemExit:  # all processes have saved
            raise
        except BaseException:
            traceback.print_exc()
            code = 1
        if code:
            mesh.leave(code)
        return code


if __name__ == "__main__":
    raise SystemExit(main())
