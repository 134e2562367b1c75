"""Requests that new weights overtake go on with them, and every token says which weights generated it."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch

from actors.config import GenerationConfig
from actors.messages import Work
from actors.plan import Plan
from actors.token_table import TokenTable
from buffer.client import ReplayBuffer
from buffer.config import BufferConfig
from support.engines import MAX_LENGTH, start_actor, start_sender

ROWS, RESPONSE = 16, 400
NEAR_TIE_NATS = 1e-3


@pytest.mark.slow
def test_every_token_is_the_choice_of_the_version_that_it_names(ray_local, tiny_llama):
    from transformers import AutoModelForCausalLM

    draw = np.random.default_rng(0)
    rows = [(draw.integers(3, 128, 20), draw.integers(3, 128, RESPONSE)) for _ in range(ROWS)]
    table = TokenTable.from_rows(rows)
    buffer = ReplayBuffer.start(
        BufferConfig(capacity=ROWS), seed=0, batch_size=ROWS, inserts_per_step=ROWS, ordered=False, ahead=0, behind=0
    )
    greedy = GenerationConfig(temperature=0.0, segment_length=None, max_concurrent_requests=ROWS)
    sender = start_sender(tiny_llama, "shm")
    actor = start_actor("a", tiny_llama, "shm", greedy, buffer, Work(Plan(0, table.response_lengths, None, 1), table))
    ray.get([actor.ready.remote(), sender.retarget.remote({"a": actor})])
    states = {0: ray.get(sender.state.remote())}
    running, drawing = actor.run.remote(), buffer.draw_ref()
    version = 0
    while not ray.wait([drawing], timeout=0.3)[0]:
        version += 1
        ray.get(sender.stage.remote(version))
        states[version] = ray.get(sender.state.remote())
        (ack,) = ray.get(sender.send.remote())
        assert not ack.error
    pairs = buffer.resolve(ray.get(drawing)).pairs
    buffer.close()
    ray.get(running)
    assert max(len(set(pair.versions.tolist())) for pair in pairs) > 1, "no request was overtaken"

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    for named in sorted({v for pair in pairs for v in pair.versions.tolist()}):
        model.load_state_dict(states[named])
        for pair in pairs:
            mine = pair.versions == named
            assert np.all(np.diff(pair.versions) >= 0)
            ids = torch.from_numpy(np.concatenate((pair.prompt, pair.replacement)).astype(np.int64))[None]
            with torch.no_grad():
                logps = model(ids).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
            chosen = logps.gather(-1, ids[0, len(pair.prompt) :, None])[:, 0]
            assert (logps.max(-1).values - chosen)[torch.from_numpy(mine)].le(NEAR_TIE_NATS).all()
    for handle in (actor, sender):
        ray.kill(handle)
    buffer.shutdown()


@pytest.mark.slow
def test_a_row_that_is_too_long_fails_alone_and_one_of_exactly_the_limit_does_not(ray_local, tiny_llama):
    draw = np.random.default_rng(0)
    lengths = ((20, MAX_LENGTH - 20), (MAX_LENGTH, 10), (20, 30), (20, 40))
    rows = [(draw.integers(3, 128, prompt), draw.integers(3, 128, response)) for prompt, response in lengths]
    table = TokenTable.from_rows(rows)
    buffer = ReplayBuffer.start(
        BufferConfig(capacity=4), seed=0, batch_size=3, inserts_per_step=4, ordered=False, ahead=0, behind=0
    )
    whole = GenerationConfig(segment_length=None, max_concurrent_requests=4)
    actor = start_actor("a", tiny_llama, "shm", whole, buffer, Work(Plan(0, table.response_lengths, None, 1), table))
    running = actor.run.remote()
    pairs = buffer.resolve(ray.get(buffer.draw_ref(), timeout=120)).pairs
    assert {pair.row for pair in pairs} <= {0, 2, 3}
    limit = [1, *draw.integers(3, 128, MAX_LENGTH - 2).tolist()]
    (scores,) = ray.get(actor.score.remote([limit]))
    assert len(scores) == MAX_LENGTH - 2
    assert buffer.stats().failed >= 1
    buffer.close()
    ray.get(running)
    ray.kill(actor)
    buffer.shutdown()
