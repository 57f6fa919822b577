"""Three served models take turns on the one GPU that Ray has to give."""

import pytest
import ray

from tests.unit.models.conftest import stand_in as stand_in
from tests.unit.models.test_gpu_turns import file_of as file_of
from tests.unit.models.test_gpu_turns import unwatched
from tracefactory.config import load_pipeline
from tracefactory.engine.run import run_pipeline


@pytest.fixture
def one_gpu():
    ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.slow  # test_gpu_turns.py does it inline
@pytest.mark.usefixtures("one_gpu")
async def test_three_models_finish_on_one_gpu_of_ray(file_of, stand_in):
    pipeline = load_pipeline(file_of(), sets=["run.executor=ray", "run.gpus=null"])
    outcome = await run_pipeline(pipeline, unwatched)
    assert [stage.tally.kept for stage in outcome.stages if stage.id != "problems"] == [4, 4, 4]
    assert len(stand_in.started) == 3
    assert {started["gpus"] for started in stand_in.started} == {"0"}
    assert stand_in.all_gone()
