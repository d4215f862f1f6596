"""Plain helpers over tensors, modules, dicts and paths. They know no story, group, judge or Qwen."""

import sys

if sys.version_info < (3, 11):
    sys.exit("error: this project needs Python 3.11 or newer (tested with 3.11, 3.12 and 3.13)")
