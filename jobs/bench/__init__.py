"""`fullres bench ...`: side-by-side measurements. Every figure in BENCHMARKS.md comes from one of these."""

import typer

from fullres.jobs.bench.adaptive import adaptive
from fullres.jobs.bench.memory import memory
from fullres.jobs.bench.parity import parity
from fullres.jobs.bench.pipeline import pipeline
from fullres.jobs.bench.sampled import sampled
from fullres.jobs.bench.sampling import sampling
from fullres.jobs.bench.scaling import scaling
from fullres.jobs.bench.smp import smp
from fullres.jobs.bench.targets import targets
from fullres.jobs.bench.train import train

app = typer.Typer(help="Side-by-side measurements, in one run.", no_args_is_help=True)
app.command()(smp)
app.command()(scaling)
app.command()(sampling)
app.command()(targets)
app.command()(train)
app.command()(parity)
app.command()(pipeline)
app.command()(memory)
app.command()(adaptive)
app.command()(sampled)
