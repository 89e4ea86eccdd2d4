"""Apache Beam, imported without what it says while it is: the only module that imports it.

Beam's import warns through the root logger, which also gives the whole process a handler on standard error. A library
leaves logging to the application: whoever configures it still gets Beam's messages.
"""

import contextlib
import logging
from collections.abc import Iterator


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
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.runners.worker import sdk_worker_main
    from apache_beam.transforms.environments import SubprocessSDKEnvironment

# Else Python prints what no handler takes.
logging.getLogger("apache_beam").addHandler(logging.NullHandler())

__all__ = ["FnApiRunner", "PipelineOptions", "SubprocessSDKEnvironment", "beam", "sdk_worker_main"]
