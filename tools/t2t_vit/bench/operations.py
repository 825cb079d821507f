"""The operations that a training step starts, counted by Paddle's profiler.

On a GPU the processor starts each of them as a kernel or more, which takes some microseconds at any batch size.
"""

from collections import Counter

from paddle import profiler

from t2t_vit.bench.process import Process
from t2t_vit.bench.samples import training_samples
from t2t_vit.bench.train import TrainingSteps
from t2t_vit.config import with_keys

# What a CPU would do differently from a GPU, and the smallest batch that mixes images.
_AS_ON_A_GPU = {"DEVICE": "cpu", "CPU.MICRO_BATCH": 0, "CPU.FAST_OPS": False, "TRAIN.BATCH_SIZE": 2}
_START_NOTHING = ("reshape_", "GradNodeAccumulation")  # they only hand a tensor on


def count_operations(cfg):
    """Return {"forward and backward", "update"}: operations of a float32 training step, nearly as on a GPU.

    This is counted on the CPU: without the casts of mixed precision, and with transpositions, which are views on a GPU.
    """
    cfg = with_keys(cfg, _AS_ON_A_GPU)
    with Process(f"the operations of {cfg.NAME}", cfg) as process:
        return process.run(_count, cfg)


def _count(cfg):
    samples, cfg = training_samples(cfg, False, cfg.TRAIN.BATCH_SIZE)
    steps = TrainingSteps(cfg, samples)
    steps()  # makes the optimizer's state
    total = sum(operations(steps).values())
    update = sum(update_operations(steps.step, steps).values())
    return {"forward and backward": total - update, "update": update}


def update_operations(step, run):
    """Return the `operations` of the update of `step`, a `TrainStep`, when `run()` makes a step."""
    update, found = step._update, Counter()

    def counted(*args):
        results = []
        found.update(operations(lambda: results.append(update(*args))))
        return results[0]

    step._update = counted
    try:
        run()
    finally:
        step._update = update
    return found


def operations(run):
    """Count the operations that a function starts: Counter of names."""
    watching = profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    watching.start()
    run()
    watching.stop()
    found, nodes = Counter(), list(watching.profiler_result.get_data().values())
    while nodes:
        node = nodes.pop()
        # "matmul dygraph"; "Global_MatmulGradNode" (3.3.1) or "MatmulGradNode" (2.6.2)
        name = node.name.split()[0].replace("Global_", "")
        found[name] += node.type == profiler.TracerEventType.Operator and name not in _START_NOTHING
        nodes += node.children_node
    return +found
