"""A student that vLLM serves says of real text what the same checkpoint says in process, but for entropies."""

import json

import pytest
import yaml

from tests.unit.stages.conftest import Made, unwatched
from tests.vllm.conftest import FIELDS
from tracefactory.config import load_pipeline
from tracefactory.core.errors import UserError
from tracefactory.engine.run import run_pipeline

pytestmark = pytest.mark.vllm
STEPS = "Half of {n} is {half}, so the farmer keeps {half} cows.\n\nWait, let me check: {half} + {half} = {n}.\n\n"
FILE = {"paths": "traces.jsonl", "question": "q", "answer": "a"}
NEAR = 2e-3  # nats per token; float32 on two engines that add up in different orders


def row(number, repeats=1):
    thinking = (STEPS * repeats).format(n=2 * number, half=number)
    return {"q": f"What is half of {2 * number}?", "a": number, "response": f"<think>{thinking}</think>It is {number}."}


def project(root, model):
    """Six traces, of which the last does not fit the student; the chunks of 512 tokens split the fifth."""
    rows = [*(row(number) for number in range(11, 15)), row(15, repeats=16), row(16, repeats=40)]
    (root / "traces.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    local = {"use": "transformers", "model": model["model"]}
    stages = [
        {"id": "raw", "source": "traces", "with": {**FILE, "model": "me"}},
        {"id": "served", "measure": "student", "with": {"student": "behind", "window": 2}},
        {"id": "both", "measure": "student", "with": {"student": "here", "window": 2}},
    ]
    pipeline = {"name": "t", "version": "1", "models": {"behind": model, "here": local}, "stages": stages}
    path = root / "pipelines" / "t.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({**pipeline, "run": {"executor": "inline", "workers": 1}}))
    return path


async def test_a_served_student_measures_what_the_same_student_measures_in_process(vllm_environ, tmp_path):
    loaded = load_pipeline(project(tmp_path, FIELDS))
    made = Made(await run_pipeline(loaded, unwatched), loaded.project.state_dir)
    tally = next(stage.tally for stage in made.outcome.stages if stage.id == "served")
    assert (tally.rows_in, tally.kept, tally.reasons) == (6, 5, {"longer_than_context": 1})
    for trace in made.traces("both"):
        behind, here = (
            {name.removeprefix(f"{who}/"): value for name, value in trace.measures.items() if name.startswith(who)}
            for who in ("behind", "here")
        )
        assert here.keys() - behind.keys() == {"mean_entropy"}
        assert behind["tokens"] == here["tokens"]
        for name in ("mean_surprisal", "local_naturalness_w2"):
            assert behind[name] == pytest.approx(here[name], abs=NEAR)
        for name in ("rank_surprisal", "share_outside_top20", "acceptance_p0.01_top20"):
            assert behind[name] == pytest.approx(here[name], rel=0.02, abs=2 / here["tokens"])


@pytest.mark.parametrize(("mode", "message"), [("raw_logits", "reports logits"), ("processed_logprobs", None)])
async def test_only_a_server_with_the_models_own_log_probabilities_is_believed(vllm_environ, tmp_path, mode, message):
    """vLLM reports logits of a prompt's tokens in a mode of logits, and raw values in every other mode."""
    fields = {**FIELDS, "engine_args": {**FIELDS["engine_args"], "logprobs_mode": mode}}
    loaded = load_pipeline(project(tmp_path, fields))
    if message is None:
        made = Made(await run_pipeline(loaded, unwatched), loaded.project.state_dir)
        for trace in made.traces("both"):
            assert trace.measures["behind/mean_surprisal"] == pytest.approx(
                trace.measures["here/mean_surprisal"], abs=NEAR
            )
        return
    with pytest.raises(UserError, match=f"{message} .*--logprobs-mode raw_logprobs"):
        await run_pipeline(loaded, unwatched)
