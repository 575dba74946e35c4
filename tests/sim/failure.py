"""How a run failed: what people need to see it, and what is needed to see it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.sim.plan import Plan
from tests.sim.trace import Line, about, concerning

STUCK = ("not at rest", "are left", "no time passes", "ever happen")


class SimulationError(Exception):
    """Something went wrong that never may."""


@dataclass(frozen=True)
class Failure:
    """happened: what each fault of the plan did, in words. digest: of the trace up to the failure."""

    seed: int
    shape: str
    canary: str
    plan: Plan
    reason: str
    happened: Mapping[int, str]
    lines: Sequence[Line]
    digest: str

    @property
    def kind(self) -> str:
        """What two failures of one cause have in common: that data or names are wrong (whoever notices it first), that
        something does not end, or the error of a program."""
        error, _, words = self.reason.partition(": ")
        if any(word in words for word in STUCK):
            return "stuck"
        return "wrong" if error in ("SimulationError", "BrokenRuleError", "TornError") else error

    def command(self, *, inline: bool = True, file: str = "") -> str:
        """What shows it again."""
        words = ["make sim", f"SEED={self.seed}", f"SHAPE={self.shape}"]
        if file:
            words.append(f"PLAN={file}")
        elif inline:
            words.append(f"PLAN='{self.plan.text('; ')}'")
        if self.canary:
            words.append(f"ARGS='--canary {self.canary}'")
        return " ".join(words)

    def schedule(self) -> str:
        """The plan as a table, with what became of each fault."""
        plan = self.plan
        limit = f", at most {plan.operations} operations" if plan.operations else ""
        lines = [f"load for {plan.load_s:g} s by {plan.clients} clients{limit}"]
        if plan.kv_faults:
            lines.append(f"the store refuses {plan.kv_faults:.1%} of the commits")
        if plan.rare:
            lines.append(f"rare branches: {', '.join(plan.rare)}")
        if not plan.faults:
            return "\n".join([*lines, "no faults"])
        lines.append(f"{'at':>9}  {'fault':<13}{'for':>9}  what it did")
        for number, fault in enumerate(plan.faults):
            did = self.happened.get(number, "nothing")
            lines.append(f"{fault.at_s:>7.3f} s  {fault.kind:<13}{fault.duration_s:>7.3f} s  {did}")
        return "\n".join(lines)

    def trace(self, *, everything: bool = False) -> str:
        """The events: of messages only those of the objects that failed, unless everything is asked for."""
        if everything:
            return "\n".join([line.text for line in self.lines])
        return "\n".join(concerning(self.lines, about(self.reason)))


class SimulationFailed(SimulationError):
    """A run that failed."""

    def __init__(self, failure: Failure) -> None:
        lines = "\n".join([line.text for line in failure.lines if line.exchange is None])
        super().__init__(f"seed {failure.seed}, shape {failure.shape}: {failure.reason}\n{lines}")
        self.failure = failure
