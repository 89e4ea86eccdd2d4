"""A Beam worker process that ends with the driver that started it: Beam's own goes on until it finishes its shard."""

import os
import sys

from pipelines.quiet_beam import worker_main
from pipelines.stopping import end_with_parent

if __name__ == "__main__":
    end_with_parent(int(os.environ["VITRINE_BEAM_DRIVER"]))
    worker_main(sys.argv)
