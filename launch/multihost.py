"""The front door: trains where the mesh's devices are, and predicts where they are not.

python launch/multihost.py --mesh 128x8 [--model llama2-70b] [--cluster dgx-h100]
"""

import sys

from exajax.cli.main import front_door

if __name__ == "__main__":
    sys.exit(front_door())
