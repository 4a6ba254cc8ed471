"""The process that drives one contender through one measurement; harness.py starts it anew each time.

The only argument is JSON: which contender, which function of which script, with what parameters, a directory for
files, and the descriptor of the pipe that takes the answer: {"figures": {name: number}} or {"error": text}.
"""

import importlib
import json
import os
import sys
import traceback
from typing import Any

from contenders import BY_NAME
from processes import adopt_orphans

ERROR_TEXT_MAX = 4000  # an answer must fit into the pipe, which is read only after we have ended


def answer(order: dict[str, Any]) -> dict[str, Any]:
    """Measure as ordered; whatever goes wrong in a contender becomes the answer."""
    try:
        measure = getattr(importlib.import_module(order["module"]), order["function"])
        return {"figures": measure(BY_NAME[order["contender"]](order["scratch"]), order["parameters"])}
    except Exception as error:  # a contender may fail in any way; the harness reports it
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:ERROR_TEXT_MAX]}


def main() -> None:
    """Keep the pipe from the contender's processes, measure, answer."""
    order = json.loads(sys.argv[1])
    os.set_inheritable(order["pipe"], False)
    adopt_orphans()
    with os.fdopen(order["pipe"], "w") as pipe:
        json.dump(answer(order), pipe)


if __name__ == "__main__":
    main()
