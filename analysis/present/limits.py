"""What cannot be compared with the paper, and why."""

from analysis.present.provenance import listed
from analysis.stats.significance import one_example_points
from analysis.study.comparability import differences
from analysis.study.names import TASKS
from analysis.study.paper import is_paper_backbone, published
from condlora.grid.cells import Cell

PUBLISHED_PROTOCOLS = {"authors", "paper", "lora_setting"}


def limits(done: list[Cell], alpha: float) -> list[str]:
    """What cannot be compared with the paper, and why."""
    records = [cell.record for cell in done]
    lines = []
    if not all(map(is_paper_backbone, records)):
        names = listed(
            f"{r['backbone']['name']} ({r['backbone']['layers']} layers of width "
            f"{r['backbone']['hidden_size']})"
            for r in records
        )
        lines.append(
            f"The backbone is {names}; the paper's is RoBERTa-base (12 layers of width 768). "
            "Scores, φ and speeds here are other quantities than the paper's: their differences "
            "from its numbers measure the backbone, and only the direction of an effect can be compared."
        )
    own = listed(cell.task for cell in done if cell.task not in TASKS)
    if own:
        lines.append(f"The paper has no such task: {own}.")
    glue = [cell.record for cell in done if cell.task in TASKS]
    if not all(record["data"]["official_counts"] for record in glue):
        sources = listed(record["data"]["source"] for record in glue)
        lines.append(
            f"The data ({sources}) are not GLUE as published, so no score here is a GLUE score; "
            "a task is named after the GLUE task it stands in for."
        )
    protocols = {record["recipe"]["protocol"]["name"] for record in records}
    if not protocols <= PUBLISHED_PROTOCOLS:
        steps = [record["steps"] for record in records]
        lines.append(
            f"The protocol ({listed(protocols)}) is not the authors': runs of {_range(steps)} steps. "
            "Where two methods differ here, training longer or another learning rate may move the difference."
        )
    lines += [
        f"Runs that are compared or averaged here differ in {kind}: {text}."
        for kind, text in differences(done).items()
    ]
    seeds = len({cell.seed for cell in done})
    lines += [
        f"The paper does not state its number of seeds or its standard deviations; here there are {seeds}. "
        "Seeds repeat the training and not the pre-training: all runs share one W₀, and the verdicts "
        "apply to this W₀ alone.",
        f"Each claim is tested at level {alpha:g}; p values are adjusted within a claim where its rule "
        "says so, but not over claims: of many false claims, some are found to hold by chance.",
        "An interval over seeds describes the variation over seeds with the test examples fixed; an interval "
        "over test examples describes the variation over examples with the seeds fixed. Neither covers both. "
        + _resolution(done),
        "The paper's pairwise t-test does not say what is paired; here it is seeds. A large p does "
        "not show that the methods are equal, so equality has a test of its own.",
        "Figure 1's values are drawn and not printed in the paper: its claims can be tested, its "
        "heat maps cannot be compared number by number.",
        "Table 3's task is not stated in the paper, nor is the task on which Table 4's speed was "
        f"measured; that speed is of {published('table4')['device']}.",
    ]
    return lines


def in_short(done: list[Cell]) -> list[str]:
    """What keeps the numbers here from being compared with the paper's, a few words each; empty where nothing does."""
    records = [cell.record for cell in done]
    found = []
    if not all(map(is_paper_backbone, records)):
        found.append(
            f"backbone ({listed(r['backbone']['name'] for r in records)}, not RoBERTa-base)"
        )
    if not all(r["data"]["official_counts"] for r in records):
        found.append(f"data ({listed(r['data']['source'] for r in records)}, not GLUE)")
    if not {r["recipe"]["protocol"]["name"] for r in records} <= PUBLISHED_PROTOCOLS:
        found.append(f"training ({_range([r['steps'] for r in records])} steps)")
    return found


def _range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _resolution(done: list[Cell]) -> str:
    """What one test example is worth where that is most."""
    worth = {
        cell.task: one_example_points(
            cell.record["headline"], cell.record["data"]["counts"]["test"]
        )
        for cell in done
    }
    known = {task: points for task, points in worth.items() if points == points}
    if not known:
        return ""
    task = max(known, key=known.get)
    return f"One test example of {TASKS.get(task, task)} is worth {known[task]:.2f} points."
