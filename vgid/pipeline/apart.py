"""Work in a process of its own, for what only the end of a process gives back: a GPU's memory.

A closed vLLM engine keeps some of it, and so does a trained student; the next model may then not fit. What this gives
up: the seconds in which the libraries are imported again, which is why work stays in this process where no GPU is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import Any, TypeVar

from vgid.errors import Stopped, VgidError
from vgid.pipeline.console import quieten_libraries
from vgid.pipeline.signals import stop_signal

_LOOK_EVERY_S = 0.2

Result = TypeVar("Result")


def needs_own_process() -> bool:
    """Whether models are better loaded in processes of their own."""
    import torch

    return torch.cuda.is_available()


def apart(work: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call `work` in a process of its own if there is a GPU, else here.

    The process draws its progress where this one would, hears of SIGTERM and Ctrl-C through this one, and ends with
    this one, however that ends.

    Args:
        work: A function of a module, as the other process imports it.
        arguments: Of `work`; they and its result are pickled.
        options: The same, by name.

    Raises:
        VgidError: as `work` does, or the process ended before it had a result.
        OSError: as `work` does.
        Stopped: SIGTERM or Ctrl-C, and `work` heeded it.
    """
    if not needs_own_process():
        return work(*arguments, **options)
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, work, arguments, options), name=work.__name__)
    with stop_signal("the process at work has been told") as should_stop, ours:
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        try:
            is_told = False
            while not ours.poll(_LOOK_EVERY_S):
                if should_stop() and not is_told:
                    process.terminate()
                    is_told = True
            outcome: Any = ours.recv()
        except EOFError:
            process.join()
            if should_stop():  # it was told while it still imported its libraries
                raise Stopped("stopped before anything was begun; rerun to continue") from None
            raise VgidError(f"the process for {work.__name__} {_ending(process.exitcode)}") from None
        except KeyboardInterrupt:
            process.kill()
            raise
        process.join()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome[0]


def _work(pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """What the other process does; errors that a user can cause travel back, others end it with their traceback."""
    Thread(target=_end_with_parent, daemon=True).start()
    quieten_libraries()
    try:
        outcome: Any = (work(*arguments, **options),)
    except (VgidError, OSError) as error:
        outcome = error
    except KeyboardInterrupt:
        sys.exit(1)
    pipe.send(outcome)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was ended by signal {-code} (9 is what a machine short of memory sends); what was committed stays"
    return f"ended with exit code {code} before it had a result"
