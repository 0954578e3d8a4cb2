"""Laws of partitioners: each example once, the minimum, sizes, mixes of labels, the seed."""

import numpy as np
import pytest

import feddpa_jax as fd
from feddpa_jax.partitioning.client_sizes import apportion
from feddpa_jax.partitioning.heterogeneity import distances
from feddpa_jax.partitioning.partition import Partition, partition
from feddpa_jax.partitioning.pool import Labels
from feddpa_jax.types import UserError
from tests.partitioning.flat_examples import flat

ALL = [
    "iid",
    "iid(sizes=uniform)",
    "iid(sizes=lognormal, sigma=2)",
    "dirichlet(task, alpha=0.1)",
    "dirichlet(task, alpha=1000)",
    "dirichlet(number, alpha=0.3)",
    "dirichlet(task, alpha=0.1, sizes=equal)",
    "dirichlet(task, alpha=0.001, sizes=lognormal)",
    "pathological(task)",
    "pathological(task, k=3)",
    "natural(user)",
]


def sizes(found: Partition) -> np.ndarray:
    return np.bincount(found.client_I[found.client_I >= 0], minlength=len(found.names))


def distances_of(found: Partition) -> tuple[float, float]:
    """The mean distance, and that by chance."""
    told = found.statistics
    assert told.distance is not None and told.distance_by_chance is not None
    return told.distance, told.distance_by_chance


def labels_of(found: Partition, column: str = "task") -> list[set]:
    values = found.table.column(column).to_pylist()
    return [
        {values[i] for i in np.flatnonzero(found.client_I == c)} for c in range(len(found.names))
    ]


@pytest.mark.parametrize("how", ALL)
def test_every_example_has_one_client_and_every_client_enough(how):
    clients = None if how.startswith("natural") else 12
    found = partition(flat(), how, clients=clients, minimum=3, seed=5)
    assert found.client_I.shape == (240,) and len(found.names) == len(set(found.names))
    assert sizes(found).min() >= 3
    assert len(sizes(found)) == len(found.names) == (clients or len(found.names))
    if clients:
        assert sizes(found).sum() == 240 and len(found.names) == 12
    again = partition(flat(), how, clients=clients, minimum=3, seed=5)
    assert np.array_equal(found.client_I, again.client_I)
    if clients:
        other = partition(flat(), how, clients=clients, minimum=3, seed=6)
        assert not np.array_equal(found.client_I, other.client_I)


def test_sizes_differ_by_one_at_most_or_as_asked():
    assert sorted(sizes(partition(flat(50), "iid", clients=7))) == [7] * 6 + [8]
    rows = flat(20_000)
    log = np.log(sizes(partition(rows, "iid(sizes=lognormal, sigma=0.7)", clients=400)))
    assert abs(log.std() - 0.7) < 0.1
    uniform = sizes(partition(rows, "iid(sizes=uniform)", clients=400))
    # Between 0 and twice the mean of 50: the standard deviation is 100 / sqrt(12) = 28.9.
    assert abs(uniform.std() - 28.9) < 4 and uniform.max() < 115
    least = sizes(partition(flat(), "iid(sizes=lognormal, sigma=3)", clients=20, minimum=11))
    assert least.min() == 11 and least.sum() == 240


def test_given_sizes_leave_the_others_out():
    for how in ("iid(sizes=[5, 9])", "dirichlet(task, sizes=[5, 9])"):
        found = partition(flat(), how)
        assert list(sizes(found)) == [5, 9]
        assert found.statistics.left_out == 240 - 14
        assert (found.client_I == -1).sum() == 240 - 14


def test_largest_remainders_by_hand():
    # 10 in proportion to 1, 1, 5 are 1.43, 1.43, 7.14: the first takes what is over.
    assert list(apportion(np.array([1.0, 1.0, 5.0]), 10)) == [2, 1, 7]


def test_iid_takes_from_everywhere():
    """Data are often sorted: what a client has must not depend on where it stands."""
    found = partition(flat(4000), "iid", clients=4)
    means = [np.flatnonzero(found.client_I == c).mean() for c in range(4)]
    # The standard deviation of a mean of 1,000 places is 4000 / sqrt(12 * 1000) = 36.5.
    assert np.abs(np.array(means) - 2000).max() < 150


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_shares_of_a_label_are_dirichlet(alpha):
    """Of two clients, one has Beta(alpha, alpha) of a label: variance 1 / (4 (2 alpha + 1))."""
    rows = [{"task": f"{n // 60}"} for n in range(60 * 600)]
    found = partition(rows, "dirichlet", column="task", alpha=alpha, clients=2)
    share_K = found.client_I.reshape(600, 60).mean(axis=1)
    assert abs(share_K.mean() - 0.5) < 0.06
    assert abs(share_K.var() * 4 * (2 * alpha + 1) - 1) < 0.15


def test_mixes_of_clients_of_equal_sizes_are_dirichlet():
    """The same of one of two labels; 100 draws from the mix add (1/4 - variance) / 100."""
    rows = [{"task": str(n % 2)} for n in range(80_000)]
    found = partition(rows, "dirichlet(task, alpha=0.5, sizes=equal)", clients=800)
    assert set(sizes(found)) == {100}
    ones_C = np.bincount(found.client_I, np.arange(80_000) % 2) / 100
    assert abs(ones_C.var() / (0.125 + 0.00125) - 1) < 0.1


def test_a_large_alpha_is_iid_and_a_small_one_gives_a_label():
    near = partition(flat(2400), "dirichlet(task, alpha=1000)", clients=20)
    distance, by_chance = distances_of(near)
    assert distance < by_chance
    assert sizes(near).min() >= 112 and sizes(near).max() <= 128
    drawn = partition(flat(2400), "dirichlet(task, alpha=1e5, sizes=equal)", clients=20)
    distance, by_chance = distances_of(drawn)
    assert abs(distance - by_chance) < 0.02
    far = partition(flat(2400), "dirichlet(task, alpha=0.001, sizes=equal)", clients=20)
    assert np.mean([len(own) == 1 for own in labels_of(far)]) > 0.7
    # Fewer examples of a label than clients: equal shares are equal sizes all the same.
    thin = partition(flat(400, 8), "dirichlet(task, alpha=1e6)", clients=100, minimum=3)
    assert thin.statistics.sizes.most <= 5


def test_what_no_draw_can_give_ends_with_a_message():
    for clients, minimum, message in (
        (100, 1, "clients: 100 with at least 1 of the 50 examples each are too many; "),
        (
            25,
            2,
            r"after 100 tries \d+ of 25 clients have fewer examples than the minimum of 2;",
        ),
    ):
        with pytest.raises(UserError, match=message):
            partition(flat(50), "dirichlet(task, alpha=1e-3)", clients=clients, minimum=minimum)
    found = partition(flat(50), "dirichlet(task, alpha=1e-3, sizes=equal)", clients=25, minimum=2)
    assert set(sizes(found)) == {2}
    with pytest.raises(UserError, match="after 3 tries"):
        partition(flat(), "dirichlet(task, alpha=1e-3, tries=3)", clients=100)
    with pytest.raises(UserError, match="take too much memory"):
        rows = [{"task": n} for n in range(8000)]
        partition(rows, "dirichlet(task)", clients=8000)


@pytest.mark.parametrize(("k", "clients"), [(1, 8), (2, 30), (3, 7), (4, 10)])
def test_pathological_clients_have_k_tasks(k, clients):
    found = partition(flat(1200), f"pathological(task, k={k})", clients=clients, seed=1)
    own = labels_of(found)
    assert {len(one) for one in own} == {k}
    assert set().union(*own) == {f"task {n}" for n in range(4)}


def test_pathological_combines_tasks_in_all_ways_and_equal_sizes():
    rows = [{"task": n % 5} for n in range(1000)]
    found = partition(rows, "pathological(task, k=2)", clients=100)
    # 40 shards of 5 examples each for each task.
    assert set(sizes(found)) == {10}
    pairs = list(map(frozenset, labels_of(found)))
    assert {len(pair) for pair in pairs} == {2} and len(set(pairs)) == 10


def test_pathological_when_a_label_is_rare():
    rows = [{"task": "rare" if n == 7 else str(n % 2)} for n in range(101)]
    found = partition(rows, "pathological(task, k=2)", clients=10, minimum=2)
    assert max(len(own) for own in labels_of(found)) <= 2 and sizes(found).sum() == 101
    for clients, k, minimum, message in (
        (2, 1, 1, "2 clients with 1 labels each cannot hold the 3 labels of column 'task'"),
        (60, 2, 1, "101 examples cannot be cut into 60 x 2 shards"),
        (10, 2, 9, "in 100 tries some client always had fewer examples than the minimum of 9"),
        (10, 4, 1, "k: clients cannot have 4 labels, as column 'task' has 3; lower k"),
    ):
        with pytest.raises(UserError, match=message):
            partition(rows, "pathological(task)", clients=clients, minimum=minimum, k=k)


def test_natural_clients_are_the_users():
    rows = flat()
    found = partition(rows, "natural(user)", minimum=20, label="user")
    # User k has the 2 k + 1 numbers from k^2 on; the last one, from 225 on, has 15 of its 31.
    assert sorted(found.names) == sorted(f"u{k}" for k in range(10, 15))
    for c, name in enumerate(found.names):
        assert {rows[i]["user"] for i in np.flatnonzero(found.client_I == c)} == {name}
    assert found.statistics.left_out == 100 + 15
    drawn = [set(partition(rows, "natural(user)", clients=3, seed=seed).names) for seed in range(4)]
    assert all(len(one) == 3 for one in drawn) and len(set(map(frozenset, drawn))) > 1
    with pytest.raises(UserError, match="minimum: no value of column 'user' has 99 examples"):
        partition(rows, "natural(user)", minimum=99)
    with pytest.raises(UserError, match="clients: 17 are asked for, and column 'user' has 16"):
        partition(rows, "natural(user)", clients=17)


def test_distances_by_hand():
    labels = Labels(("a", "b"), np.array([0, 0, 0, 1, 1]))
    # All: 3/5 and 2/5. The first client has a alone: 2/5 more; the other 1/3 of a: 4/15 less.
    assert distances(np.array([0, 0, 1, 1, 1]), labels, 2) == pytest.approx([2 / 5, 4 / 15])
    # An example of no client counts nowhere: now all is a.
    assert distances(np.array([0, 0, 1, -1, -1]), labels, 2) == pytest.approx([0, 0])


def test_statistics_tell_chance_from_difference():
    found = partition(flat(2000), "iid", clients=100)
    distance, by_chance = distances_of(found)
    assert abs(distance - by_chance) < 0.02 < 0.1 < distance
    told = found.statistics
    assert (told.column, told.labels, told.clients, told.examples) == ("task", 4, 100, 2000)
    apart = partition(flat(2000), "pathological(task, k=1)", clients=100)
    assert distances_of(apart)[0] > 0.4
    assert apart.statistics.own_labels is not None and apart.statistics.own_labels.most == 1


def test_examples_without_a_task_are_dealt_out_too():
    """IID needs no column: where the data's own has gaps, they are shown as such."""
    examples = [fd.Example(f"a{n}", "b", task="t" * (n % 3 == 0)) for n in range(12)]
    found = partition(examples, "iid", clients=3)
    assert sizes(found).tolist() == [4, 4, 4]
    assert found.label == "task" and found.labels is not None
    assert dict(zip(found.labels.names, found.labels.counts.tolist(), strict=True)) == {
        "(none)": 8,
        "t": 4,
    }
    assert found.plot() is not None
    tasks = {example.task for client in found.federation().clients for example in client.train}
    assert tasks == {"t", *found.names}
    with pytest.raises(UserError, match="record 2 has no value in column 'task'"):
        partition(examples, "natural(task)")
    with pytest.raises(UserError, match="label: record 2 has no value in column 'task'"):
        partition(examples, "iid", clients=3, label="task")
    lists = [{"instruction": "a", "output": "b", "task": ["t"]} for _ in range(4)]
    assert partition(lists, "iid", clients=2).label is None
