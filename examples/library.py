# %% [markdown]
# The simulators as libraries: no command line, no cluster, no tracking. Run cell by cell in an editor, or whole with
# `python examples/library.py`.

# %%
import dataclasses

from tripath.api import accuracy, analytical, compose_experiment, cycle, prepare, validate

# %% An experiment is what the command line would run with these arguments.
experiment = compose_experiment("experiment=quick", "workload.generation_length=8", "workload.steps=2")
prepared = prepare(experiment, "Tom has 12 apples and finds 30 more. How many apples does Tom have now?")
program, prompts = prepared.program, prepared.prompts
assert program and prompts and prompts.tokenizer
print(f"{len(program.words)} instruction words, digest {program.digest[:12]}")
print("\n".join(program.to_text().splitlines()[:6]))

# %% Accuracy executes it bit by bit; its trace tells the timing paths where loops were left.
ran = accuracy.simulate(program, model=experiment.model, workload=experiment.workload, prompts=prompts.token_ids)
print("text:", prompts.tokenizer.decode(ran.token_ids[0]))
print("committed at step:", ran.commit_steps[0])

# %% Two answers to how long it takes, on the same program and trace.
facts = {"hardware": experiment.hardware, "trace": ran.trace, "technology": experiment.technology}
results = {
    "analytical": analytical.simulate(program, **facts),
    "cycle": cycle.simulate(program, **facts),
    "accuracy": ran.result,
}
print(f"estimate {results['analytical'].metrics['estimated_cycles']:,.0f} cycles")
print(f"simulated {results['cycle'].metrics['makespan_cycles']:,.0f} cycles")

# %% Do they agree?
discrepancies = validate(results, experiment.settings)
failed = [row.metric for row in discrepancies if not row.passed]
print(f"{len(discrepancies)} checks, failed: {failed or 'none'}")

# %% What if HBM were slower? The program stays, the hardware changes.
makespans = {}
for channels in (1, 2, 4):
    hbm = dataclasses.replace(experiment.hardware.hbm, channels=channels)
    hardware = dataclasses.replace(experiment.hardware, hbm=hbm)
    slower = cycle.simulate(program, hardware=hardware, trace=ran.trace)
    makespans[channels] = slower.metrics["makespan_cycles"]

# %% A plot.
import matplotlib as mpl

mpl.use("Agg")  # leave this line out in a notebook
from matplotlib import pyplot as plt

figure, axes = plt.subplots()
axes.plot(list(makespans), list(makespans.values()), "o-")
axes.set(xlabel="HBM channels", ylabel="cycles", title=f"{experiment.model.name} on {experiment.hardware.name}")
figure.savefig("channels.png")
