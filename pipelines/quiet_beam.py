"""Apache Beam, imported without what it says while it is: the only module that imports it.

Beam's import warns through the root logger, which also gives the whole process a handler on standard error. A library
leaves logging to the application: whoever configures it still gets Beam's messages.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def _silent_root() -> Iterator[None]:
    root, handler = logging.getLogger(), logging.NullHandler()
    level = root.manager.disable
    # With a handler there, `logging.warning` adds none of its own.
    root.addHandler(handler)
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
        root.removeHandler(handler)


with _silent_root():
    import apache_beam
    from apache_beam.options import pipeline_options
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.worker import sdk_worker_main
    from apache_beam.transforms import environments

# Else Python prints what no handler takes.
logging.getLogger("apache_beam").addHandler(logging.NullHandler())

# Typed here as what they are to a type checker: Beam's own annotations cover a part of them.
beam: Any = apache_beam
FnApiRunner: Any = fn_runner.FnApiRunner
PipelineOptions: Any = pipeline_options.PipelineOptions
SubprocessSDKEnvironment: Any = environments.SubprocessSDKEnvironment
worker_main: Any = sdk_worker_main.main
