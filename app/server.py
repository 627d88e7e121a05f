"""The server: `cnn-studio`, `streamlit run app/server.py`, or `uvicorn app.server:app` (one process, never more).

It serves the pages with the graph viewer and downloads beside them, keeps waiting jobs moving, shows one card in place
of a traceback, and makes a sample ready when the workspace is empty.
"""

import asyncio
import gc
import logging
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # Streamlit puts app/ on the path, not the project
    sys.path.insert(0, str(ROOT))

# Streamlit sets up its Plotly theme while it is imported: 0.2 s and 16 MB that the first page, without a chart, has no
# use for. While there is no Plotly it does not; `app.plot` makes up for it before the first chart.
PLOTLY = "plotly.graph_objects"
if "streamlit" not in sys.modules:
    sys.modules[PLOTLY] = None  # type: ignore[assignment]
import streamlit as st  # noqa: E402

if sys.modules.get(PLOTLY, st) is None:
    del sys.modules[PLOTLY]

from app import state  # noqa: E402
from app.netron import LEASES  # noqa: E402
from app.routes import ROUTES  # noqa: E402
from core.errors import StudioError  # noqa: E402
from sample_models import SAMPLES  # noqa: E402

FIRST_SAMPLE = "shapes_resnet20"
LOOK_EVERY = 1.0  # seconds between two looks at the waiting jobs

log = logging.getLogger("cnn_studio")


def on_error(error: Exception) -> bool:
    """One card with a reference that the log knows too; never a traceback in the browser."""
    reference = secrets.token_hex(4)
    log.error("page error, reference %s", reference, exc_info=error)
    st.error(
        f"Nothing was lost. Reload the page to go on. If it happens again, report reference `{reference}`.",
        title="This page stopped unexpectedly",
        icon=":material/report:",
    )
    return True


def make_ready() -> None:
    """Open the first sample when there is nothing in the workspace and nothing on its way."""
    jobs = state.jobs()
    jobs.reap()
    if not state.workspace().models() and not any(job.live for job in jobs.list()):
        card = SAMPLES[FIRST_SAMPLE]
        source = {"model": {"kind": "sample", "name": FIRST_SAMPLE}, "data": {"kind": card.data}}
        jobs.submit("open", source, f"Open {card.title}")


async def keep_moving() -> None:
    """Start waiting jobs as room comes up, whether or not anyone watches."""
    while True:
        await asyncio.sleep(LOOK_EVERY)
        try:
            await asyncio.to_thread(state.jobs().pump)
        except (OSError, StudioError):
            log.exception("could not look after the jobs")  # the next look may find the disk writable again


def warm_up() -> None:
    """Import what the first page needs while the browser is still busy with its own part."""
    for name in ("PIL.PngImagePlugin", "app.overview", "app.gallery"):
        import_module(name)
    gc.collect()
    gc.freeze()  # imported modules leave the collector's working set: reruns cost a few ms instead of 100


@asynccontextmanager
async def lifespan(_: Any) -> AsyncIterator[None]:
    LEASES.served = True
    make_ready()
    warm = asyncio.create_task(asyncio.to_thread(warm_up))
    mover = asyncio.create_task(keep_moving())
    yield
    await warm
    mover.cancel()
    with suppress(asyncio.CancelledError):
        await mover


app = st.App(Path(__file__).with_name("main.py"), routes=ROUTES, on_script_error=on_error, lifespan=lifespan)
