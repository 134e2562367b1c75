"""The one list of a run's figures: what Prometheus is given, Grafana draws and docs/metrics.md explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "total", "added"]
"""gauge: the newest value. total: a running total that only grows. added: each step's value is added to a total."""


@dataclass(frozen=True)
class Metric:
    """One figure."""

    name: str
    """In metrics.jsonl, or of the driver's own look at actors, buffer and events."""
    part: str
    """What it is of, also its label; ``actor``: each actor's name is the label."""
    panel: str
    """Title of the plot in which it is drawn, together with others of that title."""
    unit: str
    """``s``, ``tokens``, ``pairs``, ``steps``, ``nats``, ``share``, or empty."""
    help: str
    kind: Kind = "gauge"

    @property
    def counted(self) -> bool:
        """Whether it grows with time, so that its rate is what one looks at."""
        return self.kind != "gauge"

    @property
    def ray_name(self) -> str:
        """As it is given to ``ray.util.metrics``."""
        return f"sapo_{self.name.replace('/', '_')}"

    @property
    def prometheus_name(self) -> str:
        """As Ray exports it."""
        return f"ray_{self.ray_name}"


def _metrics(part: str, panel: str, unit: str, **helps: str) -> tuple[Metric, ...]:
    """Several that are drawn together; ``__`` in their names stands for ``/``."""
    return tuple(Metric(name.replace("__", "/"), part, panel, unit, text) for name, text in helps.items())


def _totals(part: str, panel: str, unit: str, kind: Kind = "total", **helps: str) -> tuple[Metric, ...]:
    return tuple(Metric(name.replace("__", "/"), part, panel, unit, text, kind) for name, text in helps.items())


OBJECTIVE = (
    *_metrics(
        "learner",
        "Loss",
        "",
        loss="Loss, mean over the batch.",
        nll_loss="Negative log-likelihood of the chosen response per token, where the objective has that term.",
    ),
    *_metrics(
        "learner",
        "Rewards",
        "nats",
        rewards__chosen="Reward of the chosen response, as the objective scales it.",
        rewards__rejected="Reward of the rejected response.",
        rewards__margins="Reward of the chosen response less that of the rejected one.",
    ),
    *_metrics(
        "learner",
        "Reward accuracy",
        "share",
        rewards__accuracies="Share of pairs whose chosen response has the higher reward.",
    ),
    *_metrics(
        "learner",
        "Margins by region",
        "nats",
        logps__segment_margin="Log-probability of B less that of B'.",
        logps__suffix_margin="Log-probability of C after B less that of C after B'.",
        logratios__segment_margin="The same of B and B', relative to the reference.",
        logratios__suffix_margin="The same of C, relative to the reference.",
        logratios__prefix="Log-probability of A relative to the reference.",
    ),
    *_metrics(
        "learner",
        "Log-probabilities",
        "nats",
        logps__chosen="Log-probability of the chosen response.",
        logps__rejected="Log-probability of the rejected response.",
        logps__prefix="Log-probability of A.",
        logps__chosen_segment="Log-probability of B.",
        logps__chosen_suffix="Log-probability of C after B.",
        logps__rejected_segment="Log-probability of B'.",
        logps__rejected_suffix="Log-probability of C after B'.",
    ),
    *_metrics(
        "learner",
        "Log-odds",
        "",
        log_odds_chosen="ORPO's log-odds of the chosen over the rejected response.",
        log_odds_ratio="ORPO's log-sigmoid of them.",
    ),
)
"""What objectives report, of the batch; the same of held-out rows is under ``eval/``."""

METRICS = (
    *OBJECTIVE,
    *(
        Metric(f"eval/{m.name}", "held-out rows", f"Held-out: {m.panel.lower()}", m.unit, f"Of held-out rows: {m.help}")
        for m in OBJECTIVE
    ),
    *_metrics(
        "evaluations",
        "Evaluations",
        "",
        eval__greedy="Mean score of greedy responses of the newest evaluated checkpoint.",
        eval__greedy_error="Standard error of it.",
        eval__sampled="Mean score of its sampled responses.",
        eval__sampled_error="Standard error of it.",
    ),
    *_metrics("evaluations", "Evaluated checkpoint", "steps", eval__step="Step of the newest evaluated checkpoint."),
    *_totals(
        "evaluations",
        "Evaluations that were not made",
        "",
        eval__skipped="Checkpoints that were due while another was evaluated, of this attempt.",
        eval__failed="Evaluations that failed, of this attempt.",
    ),
    *_metrics("learner", "Gradient norm", "", grad_norm="Global norm of the gradient before clipping."),
    *_metrics("learner", "Learning rate", "", lr="Learning rate of the step."),
    *_totals(
        "learner",
        "Skipped steps",
        "steps",
        "added",
        learner__skipped="Steps whose gradient was not finite: no weight was changed.",
    ),
    *_totals("learner", "Tokens", "tokens", "added", tokens__trained="Tokens that the learner computed."),
    *_metrics("learner", "Epochs", "", epoch="Passes through the dataset that are done."),
    *_metrics(
        "learner",
        "Step time",
        "s",
        time__step_s="One optimizer step, waiting and publishing included.",
        time__train_s="The ranks' part of it.",
        time__learner_idle_s="Waiting for pairs and for weights to arrive.",
    ),
    *_metrics(
        "learner",
        "Parts of a step",
        "s",
        time__reference_s="Scoring pairs under the reference.",
        time__forward_backward_s="Forward and backward.",
        time__optimizer_s="Reduction of the gradients, clipping, optimizer.",
        time__ema_s="Moving the EMA.",
        time__draw_wait_s="Waiting for pairs.",
        time__weights_wait_s="Waiting for actors to take weights.",
        time__publish_s="Gathering the EMA for publication.",
        time__eval_s="Evaluating held-out rows.",
    ),
    *_metrics(
        "weights",
        "Version that all actors hold",
        "steps",
        weights__version="Newest version that every generating actor has acknowledged.",
    ),
    *_metrics(
        "weights",
        "Log-probability parity",
        "nats",
        weights__parity_mean_nats="Mean difference between engine and learner per token, of the worst actor.",
        weights__parity_p99_nats="99 % quantile of it.",
        weights__parity_max_nats="The largest on any token.",
    ),
    *_metrics(
        "weights",
        "Staleness",
        "steps",
        staleness__mean="Steps that the weights behind a pair were old when it came in, mean of the batch.",
        staleness__max="The highest of the batch.",
    ),
    *_metrics(
        "buffer",
        "Age of drawn pairs",
        "steps",
        age__steps_mean="Steps since the weights behind a pair, mean of the batch.",
        age__steps_max="The highest of the batch.",
    ),
    *_metrics("buffer", "Pairs that came in since", "pairs", age__pairs_mean="Pairs inserted after a drawn one, mean."),
    *_metrics(
        "buffer",
        "Times drawn",
        "",
        draws__mean="How often the pairs of the batch had been drawn before, mean.",
        draws__max="The highest of the batch.",
    ),
    *_metrics(
        "buffer",
        "Pairs in the buffer",
        "pairs",
        buffer__size="Pairs in the buffer at the draw.",
        buffer__capacity="Most pairs that it holds.",
        buffer__leased="Plan indices that actors work on now.",
    ),
    *_totals("buffer", "Pairs that left", "pairs", buffer__evicted="Pairs that left the buffer."),
    *_totals(
        "buffer",
        "Waiting at the buffer",
        "s",
        buffer__blocked_lease_s="Time that leases waited for admission, over all that wait.",
        buffer__blocked_draw_s="Time that draws waited for pairs.",
    ),
    *_totals(
        "pairs",
        "Segments by outcome",
        "pairs",
        pairs__inserted="Segments that gave a pair.",
        pairs__identical="Segments that equalled their original.",
        pairs__discarded="Segments that ended the response early and gave no pair.",
        pairs__failed="Segments that the engine rejected.",
    ),
    *_totals("pairs", "Pairs drawn", "pairs", pairs__drawn="Pairs drawn for training."),
    *_totals("pairs", "Tokens", "tokens", tokens__generated="Tokens of the segments that came in."),
    *_metrics(
        "pairs",
        "New segments",
        "share",
        pairs__identical_fraction="Share of segments since the draw before that equalled their original.",
        pairs__eos_fraction="Share of the batch's segments that end their response.",
        pairs__edit_fraction="Token-level edit distance of B and B' over the longer of the two, mean.",
    ),
    *_metrics(
        "pairs",
        "Lengths of new segments",
        "tokens",
        pairs__edit_distance="Token-level edit distance of B and B', mean.",
        pairs__length_difference="Length of B' less that of B, mean.",
    ),
    *_metrics(
        "pairs",
        "Log-probability of new segments",
        "nats",
        pairs__replacement_logprob="Mean log-probability per token of B' under the weights that generated it.",
    ),
    *_totals("actor", "Tokens of each actor", "tokens", actor__tokens="Tokens that the actor has generated."),
    *_metrics("actor", "Requests in flight", "", actor__in_flight="Requests that its engine works on now."),
    *_metrics("actor", "Actors idle", "share", actor__idle="Share of the last half minute without a request."),
    *_metrics("actor", "Version of each actor", "steps", actor__version="Newest weights that it has acknowledged."),
    *_metrics("run", "Steps done", "steps", run__step="Optimizer steps done.", run__total_steps="Steps of the run."),
    *_metrics(
        "run",
        "Actors by state",
        "",
        run__actors_running="Actors that generate.",
        run__actors_starting="Actors that are placed, start or join.",
    ),
    *_metrics("run", "Attempt", "", run__attempt="Which attempt of the run this is, from 1."),
    *_metrics(
        "run",
        "Time lost",
        "s",
        run__lost_s="Seconds that failures have cost so far: until the next step was made, and for steps made again.",
    ),
    *_totals(
        "run",
        "Events",
        "",
        "added",
        events__checkpoint="Checkpoints written.",
        events__checkpoint_failed="Checkpoints that could not be written.",
        events__checkpoint_damaged="Checkpoints that were found damaged.",
        events__actor_replaced="Actors that were replaced.",
        events__node_leaves="Nodes that Ray was told to drain.",
        events__attempt_failed="Attempts that failed.",
        events__warnings="Lines of the log at level warning or above.",
    ),
)
BY_NAME = {metric.name: metric for metric in METRICS}


KINDS = {"gauge": "value", "total": "running total", "added": "of a step; running total in Prometheus"}


def as_markdown() -> str:
    """docs/metrics.md. ``python -m cluster.reports.metrics > docs/metrics.md`` writes it."""
    lines = [
        "# Metrics",
        "",
        "Generated from `cluster/reports/metrics.py`: `python -m cluster.reports.metrics > docs/metrics.md`.",
        "",
        "The first column is the name in `metrics.jsonl`, TensorBoard and other trackers. Ray exports the figure to",
        "Prometheus under the second, with the labels `run` and `part`. A figure that a run's method or objective does",
        "not have is not there. Figures of an objective of your own are in `metrics.jsonl` and the trackers alone.",
        "`actor/*`, `run/*`, `events/*`, `buffer/capacity`, `buffer/leased` and `buffer/evicted` come from the driver",
        "once a second and are in Prometheus alone. What is a running total there is said so; `rate()` takes it, also",
        "when it begins anew with an attempt.",
    ]
    for part in dict.fromkeys(metric.part for metric in METRICS):
        label = "each actor's name" if part == "actor" else f"`{part}`"
        lines += ["", f"## {part.capitalize()}", "", f"Label `part`: {label}.", ""]
        lines += ["| name | in Prometheus | kind | unit | what it is |", "|---|---|---|---|---|"]
        lines += [
            f"| `{m.name}` | `{m.prometheus_name}` | {KINDS[m.kind]} | {m.unit} | {m.help} |"
            for m in METRICS
            if m.part == part
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
