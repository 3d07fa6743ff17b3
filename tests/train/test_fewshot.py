"""The few-shot head and its episodes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from armlet_runtime.errors import DataError, RecipeError
from armlet_runtime.modalities import Modality
from armlet_train.fewshot import episodes
from armlet_train.fewshot.prototypes import Distance, PrototypeHead, prototypes, similarities
from armlet_train.models import build_model
from armlet_train.recipes import find_recipe, load_recipe


def test_prototypes_are_means() -> None:
    support = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 0.0]]])  # 2 ways, 2 shots
    torch.testing.assert_close(prototypes(support, "euclidean"), torch.tensor([[1.5, 3.0], [1.0, 0.0]]))
    torch.testing.assert_close(prototypes(support, "cosine"), torch.tensor([[0.3, 0.9], [1.0, 0.0]]))


def test_similarities() -> None:
    queries, centres = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    cosine = F.cosine_similarity(queries, centres)
    torch.testing.assert_close(similarities(queries, centres, "cosine"), cosine[None])
    torch.testing.assert_close(similarities(queries, centres, "euclidean"), torch.tensor([[-0.5, -4.5]]))


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_queries_are_decided_one_by_one(distance: Distance) -> None:
    torch.manual_seed(0)
    head = PrototypeHead(distance, 7.0)
    support, queries = torch.randn(3, 5, 2, 8), torch.randn(3, 10, 8)
    together = head(queries, support)
    assert together.shape == (3, 10, 5)
    alone = torch.cat([head(queries[:, at : at + 1], support) for at in range(10)], dim=1)
    torch.testing.assert_close(together, alone)
    # Only when asked for do they look at each other.
    refined = head(queries, support, transductive_steps=3)
    refined_alone = torch.cat([head(queries[:, at : at + 1], support, 3) for at in range(10)], dim=1)
    assert not torch.allclose(refined, refined_alone)


def test_transduction_follows_the_queries() -> None:
    # The supports lie off the centres of their classes, both on the same side; many queries show where those are.
    torch.manual_seed(1)
    truth = torch.arange(2).repeat_interleave(100)
    queries = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])[truth] + 0.5 * torch.randn(200, 2)
    support = torch.tensor([[[-0.5, 0.0]], [[4.5, 0.0]]])
    head = PrototypeHead("euclidean", 4.0)
    alone = (head(queries, support).argmax(1) == truth).float().mean()
    together = (head(queries, support, 10).argmax(1) == truth).float().mean()
    assert alone < 0.8 and together > 0.98


def test_scale_is_learned() -> None:
    head = PrototypeHead("cosine", 7.0)
    support = torch.eye(3)[:, None]
    start = head(torch.eye(3), support)
    assert start.diagonal().tolist() == pytest.approx([7.0] * 3)
    torch.autograd.backward(F.cross_entropy(start, torch.arange(3)))
    assert head.log_scale.grad is not None and head.log_scale.grad < 0  # right answers: grow surer


TRUTH = np.repeat(np.arange(6), 20)
PEOPLE = np.tile(np.array(["1", "2", "3", "4"]), 30)


def test_support_and_queries_are_of_different_people() -> None:
    drawn = episodes.draw(TRUTH, PEOPLE, 200, ways=5, shots=2, queries=3, rng=np.random.default_rng(0))
    assert drawn.support.shape == (200, 5, 2) and drawn.queries.shape == (200, 5, 3)
    for support, queries in zip(*drawn, strict=True):
        assert not set(PEOPLE[support].ravel()) & set(PEOPLE[queries].ravel())
        ways = TRUTH[support]
        assert (ways == ways[:, :1]).all() and len(set(ways[:, 0])) == 5
        assert (TRUTH[queries] == ways[:, :1]).all()
        assert all(len(set(row)) == len(row) for row in (*support, *queries))
    again = episodes.draw(TRUTH, PEOPLE, 200, ways=5, shots=2, queries=3, rng=np.random.default_rng(0))
    assert np.array_equal(drawn.support, again.support)


@pytest.mark.parametrize(
    ("truth", "people", "says"),
    [
        (TRUTH[:40], PEOPLE[:40], "need 5 classes, and there are 2"),
        (TRUTH, np.full(120, "1"), "must not share a person"),
    ],
)
def test_impossible_episodes_are_one_sentence(truth: np.ndarray, people: np.ndarray, says: str) -> None:
    with pytest.raises(DataError, match=says):
        episodes.draw(truth, people, 1, ways=5, shots=1, queries=1, rng=np.random.default_rng(0))


def test_scores_with_their_intervals() -> None:
    rng = np.random.default_rng(1)
    drawn = episodes.draw(TRUTH, PEOPLE, 1000, ways=5, shots=1, queries=1, rng=rng)
    head = PrototypeHead("euclidean", 1.0)
    known = np.eye(6, dtype=np.float32)[TRUTH]
    perfect = episodes.score(known, drawn, PEOPLE, head)
    assert (perfect.accuracy, perfect.interval, perfect.episodes) == (1.0, 0.0, 1000)
    noise = rng.normal(size=(120, 8)).astype(np.float32)
    chance = episodes.score(noise, drawn, PEOPLE, head)
    assert abs(chance.accuracy - 0.2) < 0.05
    assert 0.5 < chance.interval / (1.96 * np.sqrt(0.2 * 0.8 / 5 / 1000)) < 2  # five queries an episode
    assert set(chance.people) == {"1", "2", "3", "4"}


def test_classes_are_disjoint() -> None:
    episodes.check_disjoint(("walking", "lying"), ("stand-to-lie",))
    with pytest.raises(RecipeError, match="lying cannot be learned and unseen"):
        episodes.check_disjoint(("walking", "lying"), ("lying", "stand-to-lie"))


def test_episodes_say_that_the_classifier_of_the_model_does_not_learn() -> None:
    recipe = load_recipe(find_recipe("hapt-mumae-tiny"))
    assert recipe.fewshot is not None
    few = msgspec.structs.replace(recipe.fewshot, ways=2, shots=1, queries=1)
    modalities = [Modality(name, ("x", "y", "z"), "1", 50.0) for name in ("acc", "gyro")]
    length = round(50 * recipe.data.window_s)
    model = build_model(recipe.model, modalities, {"acc": length, "gyro": length}, 3)
    objective = episodes.Episodic(model, few, 3)
    windows = {name: torch.randn(4, 3, length) for name in ("acc", "gyro")}
    objective(windows, torch.ones(4, 2, dtype=torch.bool), torch.tensor([0, 0, 1, 1]))["loss"].backward()
    unused = {name for name, one in objective.named_parameters() if one.grad is None}
    assert unused == {"model.aggregator.head.weight", "model.aggregator.head.bias"}
    assert not objective.uses_all
