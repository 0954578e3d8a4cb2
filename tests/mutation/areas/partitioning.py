"""Mutants of how flat data are divided among clients."""

from tests.mutation.mutant import edits

ENTRIES = [
    *edits(
        "files/call_text.py",
        "comparison/test_contender.py partitioning/test_specification.py",
        ("elif closing and letter == closing[-1]:", "elif closing:"),
        ("and (whole or closing)", "and closing"),
        ("elif key in named:", "elif False:"),
        ("            if named:\n", "            if False:\n"),
    ),
    *edits(
        "partitioning/client_sizes.py",
        "partitioning/test_partitioners.py",
        ("np.argsort(found_C - share_C", "np.argsort(share_C - found_C"),
        ("np.exp(sigma * rng", "np.exp(rng"),
        ("low_C = free_C & (found_C < minimum)", "low_C = np.zeros_like(free_C)"),
        ("sum(sizes) > pool.examples", "False", "partitioning/test_specification.py"),
    ),
    *edits(
        "partitioning/partitioners/iid.py",
        "partitioning/test_partitioners.py",
        ("rng.permutation(pool.examples)", "np.arange(pool.examples)"),
    ),
    *edits(
        "partitioning/partitioners/dirichlet.py",
        "partitioning/test_partitioners.py",
        ("standard_gamma(alpha + 1", "standard_gamma(alpha"),
        ("/ alpha\n", "* alpha\n"),
        ("_CATCH_UP * behind_C", "0 * behind_C"),
        ("log_g_CK[low_C] = ", "log_g_CK[low_C][:] = "),
        ("np.log(count_K) + _log_gamma", "_log_gamma"),
        ("log_weight_K = np.log(count_K) + ", "log_weight_K = np.log(count_K) + 0 * "),
    ),
    *edits(
        "partitioning/partitioners/pathological.py",
        "partitioning/test_partitioners.py",
        ("likely_K[left_K == clients - c] = np.inf", "pass"),
        ("np.log(left_K) + rng.gumbel(size=len(left_K))", "np.log(left_K)"),
        ("most_K = np.minimum(counts, clients)", "most_K = counts"),
        ("if least >= pool.minimum:", "if True:"),
    ),
    *edits(
        "partitioning/partitioners/natural.py",
        "partitioning/test_partitioners.py",
        (">= pool.minimum)", "> 0)"),
        ("rng.permutation(kept)[:wanted]", "kept[:wanted]"),
    ),
    *edits(
        "partitioning/heterogeneity.py",
        "partitioning/test_partitioners.py",
        ("own = client_I >= 0\n", "own = client_I >= -1\n"),
        ("np.maximum(count_P / size_C[client_P] - part_K[label_P], 0)", "part_K[label_P]"),
        ("rng.permutation(client_I[own])", "client_I[own]"),
    ),
    *edits(
        "partitioning/partition.py",
        "partitioning/test_partition_folder.py",
        ("np.minimum(test_C, size_C - minimum)", "test_C"),
        ("+ rng.random(clients)", ""),
        ("order = rng.permutation(len(client_I))", "order = np.arange(len(client_I))"),
        ("taken[name.lower()] == 1", "True"),
    ),
    *edits(
        "partitioning/partition_folder.py",
        "partitioning/test_partition_folder.py",
        ('np.argsort(client_I[rows], kind="stable")', "np.arange(len(rows))"),
        ("(client_I >= 0) & wanted_I", "wanted_I"),
    ),
    *edits(
        "partitioning/specification.py",
        "partitioning/test_specification.py",
        ("sizes_C.min() < pool.minimum", "False"),
        ("client_I.max() >= clients", "False"),
        ("if not _is_own(", "if _is_own("),
    ),
    *edits(
        "partitioning/partition_plot.py",
        "partitioning/test_partition_plot.py",
        ("start_C += count_CK[:, k]", "pass"),
        ("low_C = high_C", "pass"),
        ("-part_CK.max(axis=1), first_C", "first_C, -part_CK.max(axis=1)"),
        ("len(by_size) <= most", "True"),
    ),
]
